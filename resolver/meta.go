// SPDX-License-Identifier: MIT

package resolver

import (
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Metadata are what an owner wants people and programs to know of a host: a location, a role, an owner's telephone. The mesh
// gives no key a meaning.

// Bounds of a host's metadata.
const (
	MaxMeta    = 32      // keys
	maxMetaKey = 63      // bytes
	maxMetaAll = 4 << 10 // bytes of all keys and values
)

// CheckMeta reports whether metadata are within bounds: keys of a-z, 0-9, ".", "_" and "-" that begin with a letter, and
// values of one line that can be printed.
func CheckMeta(meta map[string]string) error {
	if len(meta) > MaxMeta {
		return fmt.Errorf("%d keys of metadata, at most %d are allowed", len(meta), MaxMeta)
	}
	size := 0
	for k, v := range meta {
		if k == "" || len(k) > maxMetaKey || k[0] < 'a' || k[0] > 'z' || strings.ContainsFunc(k, notKey) {
			return fmt.Errorf("metadata key %q: a key has 1 to %d of a-z, 0-9, \".\", \"_\" and \"-\", and begins with a letter", k, maxMetaKey)
		}
		if !utf8.ValidString(v) || strings.ContainsFunc(v, func(r rune) bool { return !unicode.IsPrint(r) }) {
			return fmt.Errorf("metadata %s: the value is not one line of text that can be printed", k)
		}
		size += len(k) + len(v)
	}
	if size > maxMetaAll {
		return fmt.Errorf("%d bytes of metadata, at most %d are allowed", size, maxMetaAll)
	}
	return nil
}

func notKey(r rune) bool {
	return (r < 'a' || r > 'z') && (r < '0' || r > '9') && r != '.' && r != '_' && r != '-'
}
