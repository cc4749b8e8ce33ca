// SPDX-License-Identifier: MIT

#include "textflag.h"

// meshnss_init is the only entry of the module's .init_array (go build -ldflags=-E=meshnss_init): instead of starting
// the Go runtime it tells the C side where Find's trampoline is.
TEXT meshnss_init(SB),NOSPLIT|NOFRAME,$0
	LEAQ	meshnss_find(SB), AX
	MOVQ	AX, mesh_leaf_find(SB)
	RET

// int meshnss_find(path, key *byte, n, kind u64, r *Result): System V ABI outside, Go's stack ABI (ABI0) inside.
// BX, BP and R12-R15 belong to the caller; the assembler saves BP.
TEXT meshnss_find(SB),NOSPLIT,$88-0
	MOVQ	BX, 48(SP)
	MOVQ	R12, 56(SP)
	MOVQ	R13, 64(SP)
	MOVQ	R14, 72(SP)
	MOVQ	R15, 80(SP)
	MOVQ	DI, 0(SP)
	MOVQ	SI, 8(SP)
	MOVQ	DX, 16(SP)
	MOVQ	CX, 24(SP)
	MOVQ	R8, 32(SP)
	CALL	·Find(SB)
	MOVL	40(SP), AX
	MOVQ	48(SP), BX
	MOVQ	56(SP), R12
	MOVQ	64(SP), R13
	MOVQ	72(SP), R14
	MOVQ	80(SP), R15
	RET
