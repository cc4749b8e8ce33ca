// SPDX-License-Identifier: MIT

package api

// Kept is a shared short name that this node keeps whether or not it has a host of that name: the body of POST /v1/names,
// where only Name counts, and an element of GET /v1/names.
type Kept struct {
	Name string `json:"name"`
	To   string `json:"to,omitempty"` // the node that it is being given to
}

// Released is the answer to DELETE /v1/names/NAME.
type Released struct {
	Change
	Host string `json:"host,omitempty"` // a host of this node that has the name, so that it stays this node's
}

// Give is the body of POST /v1/give. The answer is a Change.
type Give struct {
	Name string `json:"name"`
	To   string `json:"to"` // a node
}
