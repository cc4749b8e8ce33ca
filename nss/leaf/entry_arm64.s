// SPDX-License-Identifier: MIT

#include "textflag.h"

// See entry_amd64.s. R27 is the assembler's scratch register and R28 its g; both belong to the caller (AAPCS64), as do
// R19-R26, R29, R30 and F8-F15. Frames are made by hand: the assembler's own prologue may use R20 before it is saved.
TEXT meshnss_init(SB),NOSPLIT|NOFRAME,$0
	SUB	$16, RSP
	MOVD	R27, 8(RSP)
	MOVD	$meshnss_find(SB), R0
	MOVD	R0, mesh_leaf_find(SB)
	MOVD	8(RSP), R27
	ADD	$16, RSP
	RET

TEXT meshnss_find(SB),NOSPLIT|NOFRAME,$0
	SUB	$224, RSP
	STP	(R29, R30), 208(RSP)
	STP	(R19, R20), 64(RSP)
	STP	(R21, R22), 80(RSP)
	STP	(R23, R24), 96(RSP)
	STP	(R25, R26), 112(RSP)
	STP	(R27, g), 128(RSP)
	FSTPD	(F8, F9), 144(RSP)
	FSTPD	(F10, F11), 160(RSP)
	FSTPD	(F12, F13), 176(RSP)
	FSTPD	(F14, F15), 192(RSP)
	STP	(R0, R1), 8(RSP)
	STP	(R2, R3), 24(RSP)
	MOVD	R4, 40(RSP)
	CALL	·Find(SB)
	MOVW	48(RSP), R0
	LDP	64(RSP), (R19, R20)
	LDP	80(RSP), (R21, R22)
	LDP	96(RSP), (R23, R24)
	LDP	112(RSP), (R25, R26)
	LDP	128(RSP), (R27, g)
	FLDPD	144(RSP), (F8, F9)
	FLDPD	160(RSP), (F10, F11)
	FLDPD	176(RSP), (F12, F13)
	FLDPD	192(RSP), (F14, F15)
	LDP	208(RSP), (R29, R30)
	ADD	$224, RSP
	RET
