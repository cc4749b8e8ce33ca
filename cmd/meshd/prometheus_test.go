// SPDX-License-Identifier: MIT

//go:build linux

package main

import (
	"bytes"
	"cmp"
	"os"
	"os/exec"
	"syscall"
	"testing"
)

// TestRealPrometheus has a real Prometheus find a service, scrape it, and forget it when it is not well: by SRV, and by Consul's
// HTTP API where it was built with that, which Debian's is not.
func TestRealPrometheus(t *testing.T) {
	prometheus, err := exec.LookPath(cmp.Or(os.Getenv("MESH_PROMETHEUS"), "prometheus"))
	if err != nil {
		t.Skip("there is no prometheus: make test-prometheus")
	}
	bkero, meshd := consul(t)
	must(t, bkero, "mkdir /run/web && echo 'mesh_test_total 42' >/run/web/metrics")
	exporter, err := bkero.Start("python3", "-c", `import http.server, os
class exporter(http.server.SimpleHTTPRequestHandler): extensions_map = {"": "text/plain; version=0.0.4"}
os.chdir("/run/web")
http.server.test(exporter, port=9100, bind="10.77.0.1")`)
	if err != nil {
		t.Fatal(err)
	}
	until(t, bkero, "the exporter", "curl -s http://10.77.0.1:9100/metrics", "42")
	must(t, bkero, "mesh service add node-exporter 9100 --tag prod --check tcp --interval 1s && mesh service add job 9101 --check ttl:1h")
	consul := `- job_name: consul
  consul_sd_configs: [{server: "127.0.0.1:8500", services: [node-exporter], refresh_interval: 1s}]
  relabel_configs:
  - {source_labels: [__meta_consul_health], regex: passing, action: keep}
  - {source_labels: [__meta_consul_node], target_label: node}
  - {source_labels: [__meta_consul_tags], target_label: tags}
`
	if b, err := os.ReadFile(prometheus); err != nil || !bytes.Contains(b, []byte("prometheus/discovery/consul")) {
		t.Logf("%s does not know Consul (%v)", prometheus, err)
		consul = ""
	}
	if err := bkero.WriteFile("/run/prometheus.yml", []byte(`
global: {scrape_interval: 1s}
scrape_configs:
- job_name: srv
  dns_sd_configs: [{names: [_node-exporter._tcp.mesh.internal], refresh_interval: 1s}]
`+consul), 0o644); err != nil {
		t.Fatal(err)
	}
	must(t, bkero, "echo nameserver 127.0.0.153 >/run/resolv.conf && mount --bind /run/resolv.conf /etc/resolv.conf")
	p, err := bkero.Start(prometheus, "--config.file=/run/prometheus.yml", "--storage.tsdb.path=/run/tsdb", "--web.listen-address=127.0.0.1:9090")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("prometheus:\n%s\nmeshd:\n%s", p.Output(), meshd.Output())
		}
	})
	const query, targets = "curl -s 'http://127.0.0.1:9090/api/v1/query?query=mesh_test_total'", "curl -s 'http://127.0.0.1:9090/api/v1/targets?state=active'"
	wants := []string{`"job":"srv"`, `"instance":"bkero.mesh.internal:9100"`, `"42"`}
	if consul != "" {
		wants = append(wants, `"node":"bkero"`, `"tags":",prod,"`, `"instance":"10.77.0.1:9100"`)
	}
	for _, want := range wants {
		until(t, bkero, "what was scraped", query, want)
	}
	exporter.Signal(syscall.SIGKILL)
	until(t, bkero, "that it is not well", targets, `"activeTargets":[]`)

	// Reports of health, as scripts written for Consul send them.
	must(t, bkero, "curl -sf -X PUT 'http://127.0.0.1:8500/v1/agent/check/warn/service:job?note=slow'")
	until(t, bkero, "the report", "curl -s http://127.0.0.1:8500/v1/health/checks/job", `"Status":"warning","Notes":"","Output":"slow"`)
	until(t, bkero, "and in our words", "mesh service ls", "slow")
}
