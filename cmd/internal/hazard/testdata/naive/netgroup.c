// SPDX-License-Identifier: MIT
//
// The same C side as the module's.
#include "../../../../../libnss_mesh/netgroup.c"
