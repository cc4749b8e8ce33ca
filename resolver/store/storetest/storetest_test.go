// SPDX-License-Identifier: MIT

package storetest

import "testing"

func TestMemory(t *testing.T) {
	m := new(Memory)
	Test(t, m, func(int64) { m.Compact() })
}
