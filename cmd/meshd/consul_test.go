// SPDX-License-Identifier: MIT

//go:build linux

package main

import (
	"os"
	"syscall"
	"testing"
	"time"

	"mesh.internal/mesh/cmd/internal/lab"
)

// consulTemplate is what the test below has rendered. The lines begin with what they are about.
const consulTemplate = `{{range nodes}}node {{.Node}} {{.Address}}
{{end}}{{range services}}type {{.Name}} {{.Tags | join ","}}
{{end}}{{range service "http"}}http {{.Node}} {{.Address}}:{{.Port}} {{.Status}} {{.ServiceMeta.path}}
{{end}}{{range service "blog.http"}}blog {{.ID}} {{.NodeAddress}} {{.Tags | contains "blog"}}
{{end}}{{range service "http|any"}}any {{.Name}} {{.Status}}{{range .Checks}} {{.Name}}={{.Status}}{{end}}
{{end}}{{range service "shop.http"}}shop {{.ID}}
{{end}}{{with node "bkero"}}on {{.Node.Node}}:{{range .Services}} {{.Service}}:{{.Port}}{{end}}
{{end}}end
`

// consul is a node that answers Consul's HTTP API, and its meshd.
func consul(t *testing.T) (*lab.Host, *lab.Process) {
	l, router := internet(t)
	bkero, public := attach(t, l, router, "bkero")
	must(t, bkero, "mesh init --name bkero --prefix 10.77.0.0/16 --public "+public.Addr4.String())
	must(t, bkero, `printf 'consul = ["127.0.0.1:8500"]\nconsul_reports = true\n' >/run/x && cat /etc/mesh/mesh.toml >>/run/x && cp /run/x /etc/mesh/mesh.toml && meshd -check`)
	meshd := up(t, bkero)
	if _, err := bkero.Start("meshd-etcd"); err != nil {
		t.Fatal(err)
	}
	until(t, bkero, "the store", "mesh status", "ok, revision")
	return bkero, meshd
}

// TestRealConsulTemplate has a real consul-template render services, again when one is not well, and again when it is.
func TestRealConsulTemplate(t *testing.T) {
	program := os.Getenv("MESH_CONSUL_TEMPLATE")
	if program == "" {
		t.Skip("MESH_CONSUL_TEMPLATE names no consul-template: make test-consul")
	}
	bkero, meshd := consul(t)
	must(t, bkero, "mkdir /run/web")
	serve := func() func() {
		web, err := bkero.Start("python3", "-m", "http.server", "--bind", "10.77.0.1", "--directory", "/run/web", "80")
		if err != nil {
			t.Fatal(err)
		}
		return func() { web.Signal(syscall.SIGKILL) }
	}
	kill := serve()
	must(t, bkero, "mesh service add http 80/tcp --tag blog --meta path=/x --check tcp --interval 1s && mesh service add job 9101 --check ttl:1h")
	if err := bkero.WriteFile("/run/in.ctmpl", []byte(consulTemplate), 0o644); err != nil {
		t.Fatal(err)
	}
	p, err := bkero.Start(program, "-consul-addr=127.0.0.1:8500", "-template=/run/in.ctmpl:/run/out", "-log-level=info")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("consul-template:\n%s\nmeshd:\n%s", p.Output(), meshd.Output())
		}
	})
	const rest, well = "node bkero 10.77.0.1\ntype http blog\ntype job \n", "http bkero 10.77.0.1:80 passing /x\nblog http 10.77.0.1 true\nany http passing Service 'http' check=passing\non bkero: http:80 job:9101\nend"
	until(t, bkero, "what is rendered", "cat /run/out", rest+well)
	begun := time.Now()
	kill()
	until(t, bkero, "what is rendered when it is not well", "cat /run/out", "any http critical")
	out := must(t, bkero, "cat /run/out")
	if want := rest + "any http critical Service 'http' check=critical\non bkero: http:80 job:9101\nend\n"; out != want {
		t.Errorf("not well, it is\n%s\nwant\n%s", out, want)
	}
	t.Logf("rendered %s after it was killed", time.Since(begun))
	begun = time.Now()
	serve()
	until(t, bkero, "what is rendered when it is well again", "cat /run/out", rest+well)
	t.Logf("and %s after it was started again", time.Since(begun))
	must(t, bkero, "mesh service rm http")
	until(t, bkero, "what is rendered without the service", "cat /run/out", "node bkero 10.77.0.1\ntype job \non bkero: job:9101\nend")
}
