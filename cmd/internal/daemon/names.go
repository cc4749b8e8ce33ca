// SPDX-License-Identifier: MIT

package daemon

import (
	"encoding/json"
	"fmt"
	"net/http"

	"mesh.internal/mesh/cmd/internal/api"
)

// Whose a shared short name is.
func (d *daemon) handleNames(mux *http.ServeMux) {
	mux.HandleFunc("GET /v1/names", answer(func(*http.Request) (any, error) { return d.keptNames(), nil }))
	mux.HandleFunc("POST /v1/names", answer(d.keepName))
	mux.HandleFunc("DELETE /v1/names/{name}", answer(d.releaseName))
	mux.HandleFunc("POST /v1/give", answer(d.giveName))
}

func (d *daemon) keptNames() []api.Kept {
	out := []api.Kept{}
	for _, k := range d.names.Kept() {
		out = append(out, api.Kept{Name: k[0], To: k[1]})
	}
	return out
}

func (d *daemon) keepName(r *http.Request) (any, error) {
	var k api.Kept
	if err := json.NewDecoder(r.Body).Decode(&k); err != nil {
		return nil, fmt.Errorf("the request is malformed: %w", err)
	}
	landed, err := d.names.KeepName(r.Context(), d.relative(k.Name))
	return api.Change{Landed: landed}, err
}

func (d *daemon) releaseName(r *http.Request) (any, error) {
	landed, host, err := d.names.ReleaseName(r.Context(), d.relative(r.PathValue("name")))
	return api.Released{Change: api.Change{Landed: landed}, Host: host}, err
}

func (d *daemon) giveName(r *http.Request) (any, error) {
	var g api.Give
	if err := json.NewDecoder(r.Body).Decode(&g); err != nil {
		return nil, fmt.Errorf("the request is malformed: %w", err)
	}
	landed, err := d.names.GiveName(r.Context(), d.relative(g.Name), d.relative(g.To))
	return api.Change{Landed: landed}, err
}
