// SPDX-License-Identifier: MIT

package daemon

import (
	"strings"
	"testing"

	"mesh.internal/mesh/cmd/internal/config"
	"mesh.internal/mesh/resolver/store"
)

func TestStoreAccess(t *testing.T) {
	c := config.Default()
	if got := c.StorePrefix(); got != store.DefaultPrefix(c.Mesh) {
		t.Errorf("the prefix is %s, and %s in the store", got, store.DefaultPrefix(c.Mesh))
	}
	if s := storeAccess(&c, "bkero"); s != "" {
		t.Error(s)
	}
	c.Store.Access = config.Access{CA: "/a", User: "spencer", PasswordFile: "/p"}
	if s := storeAccess(&c, "bkero"); !strings.Contains(s, "let bkero in there") || !strings.HasSuffix(s, "--store-ca FILE --store-user USER --store-password-file FILE") {
		t.Error(s)
	}
}
