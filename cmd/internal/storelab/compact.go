// SPDX-License-Identifier: MIT

package main

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"mesh.internal/mesh/cmd/internal/config"
	"mesh.internal/mesh/resolver/store/etcd"
)

// compact is run on a host, as a program of its own: it has the member at an endpoint forget what was before its last
// revision, and prints that.
func compact(ctx context.Context, endpoint string) error {
	id, err := config.DefaultPaths.LoadIdentity()
	if err != nil {
		return err
	}
	a, err := etcd.Dial(endpoint, id.TLS())
	if err != nil {
		return err
	}
	defer a.Close()
	rev, err := a.Compact(ctx)
	fmt.Println(rev)
	return err
}

// compact compacts the store that a node keeps.
func (n *node) compact() int64 {
	s := must1(n.status())
	out := must1(n.host.Run(n.w.ctx, "storelab", "-compact", "https://"+s.Self.Addrs[0].String()+":2379"))
	return must1(strconv.ParseInt(strings.TrimSpace(out), 10, 64))
}
