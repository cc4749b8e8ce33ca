// SPDX-License-Identifier: MIT

//go:build linux

package main

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"mesh.internal/mesh/cmd/internal/lab"
)

// services is the story of make demo-services: a real web server is found by its service as long as it is well.
type services struct {
	names
	apache *lab.Process
}

const (
	web = "http.mesh.internal"
	// plugin is a Nagios plugin as Debian has it.
	plugin = "/usr/lib/nagios/plugins/check_http -H bkero -t 1"
	// leaseLimit is how long a node that is gone may keep its services: its lease holds 15 s from the last renewal.
	leaseLimit = 25 * time.Second
)

func tellServices(demo *demo) []part {
	d := &services{names: names{demo: demo}}
	return []part{
		{"Three hosts, joined by a router", d.hosts},
		{"spencer makes a mesh", func() error { return d.found(d.spencer) }},
		{"bkero and nibz join it", d.join},
		{"bkero has a web server, and offers it", d.offer},
		{"nibz finds it: by NSS, by DNS, and by looking round", d.find},
		{"As programs for Consul ask: its HTTP API on nibz", d.consul},
		{"One bad result changes nothing", d.flap},
		{"The web server is killed", d.dies},
		{"It is started again", d.revives},
		{"A service in a file", d.file},
		{"A service that reports itself", d.reports},
		{"All of bkero is gone", d.gone},
	}
}

const apacheConfig = `ServerName bkero
ServerRoot /run/apache
PidFile /run/apache/pid
ErrorLog /dev/stderr
LoadModule mpm_event_module /usr/lib/apache2/modules/mod_mpm_event.so
LoadModule authz_core_module /usr/lib/apache2/modules/mod_authz_core.so
LoadModule dir_module /usr/lib/apache2/modules/mod_dir.so
Listen 80
User nobody
Group nogroup
DocumentRoot /run/apache/www
DirectoryIndex index.html
`

// serve starts Apache on bkero, one process of it.
func (d *services) serve() (err error) {
	d.apache, err = d.start(d.bkero, "apache2", "-X", "-f", "/run/apache/apache2.conf")
	return err
}

func (d *services) offer() error {
	if r := d.try(d.bkero, "mkdir", "-p", "/run/apache/www"); r.code != 0 {
		return errors.New(r.err)
	}
	if err := errors.Join(d.bkero.WriteFile("/run/apache/apache2.conf", []byte(apacheConfig), 0o644),
		d.bkero.WriteFile("/run/apache/www/index.html", []byte("hello from Apache on bkero\n"), 0o644)); err != nil {
		return err
	}
	if err := d.serve(); err != nil {
		return err
	}
	d.until(d.bkero, "Apache answers on bkero", time.Now(), 10*time.Second, says("Apache"), curl("bkero")...)
	d.run(d.nibz, "nobody offers http yet", unknown, "getent", "hosts", web)
	begin := time.Now()
	d.run(d.bkero, "bkero offers it, checked by a Nagios plugin each 2 s; 3 bad results in a row count", succeeds,
		"mesh", "service", "add", "http", "80/tcp", "--tag", "blog", "--meta", "path=/", "--interval", "2s", "--fall", "3", "--check", plugin)
	d.until(d.nibz, "nibz finds it, so long after the command began", begin, 10*time.Second,
		resolvesOne("http", d.bkero.status.Self.Addrs), "getent", "hosts", web)
	d.run(d.bkero, "what the plugin said", prints(0, "HTTP OK"), "mesh", "checks")
	return nil
}

func curl(host string) []string {
	return []string{"curl", "--silent", "--show-error", "--max-time", "5", "http://" + host + "/"}
}

// ask is dig's command for nibz's DNS server.
func (d *services) ask(name, kind string, options ...string) []string {
	return append(append([]string{"dig"}, options...), "+time=3", "+tries=1", "@"+ipv4(d.nibz.status.Self.Addrs).String(), name, kind)
}

// short asks for records alone.
func (d *services) short(claim, name, kind string, words ...string) {
	d.run(d.nibz, claim, says(words...), d.ask(name, kind, "+short")...)
}

func (d *services) find() error {
	d.run(d.nibz, "getaddrinfo, in any program that uses glibc", resolves("http", d.bkero.status.Self.Addrs...), "getent", "ahosts", web)
	d.run(d.nibz, "curl", says("hello", "Apache"), curl(web)...)
	d.short("DNS: host and port", "_http._tcp.mesh.internal", "SRV", "80", "bkero.mesh.internal.")
	d.short("what types of services there are (DNS-SD)", "_services._dns-sd._udp.mesh.internal", "PTR", "_http._tcp.mesh.internal.")
	d.short("who offers this one", "_http._tcp.mesh.internal", "PTR", "bkero._http._tcp.mesh.internal.")
	d.short("and what it says of it", "bkero._http._tcp.mesh.internal", "TXT", `"path=/"`)
	d.short("as scripts for Consul ask, by a tag", "blog.http.service.mesh.internal", "SRV", "80", "bkero.mesh.internal.")
	d.run(d.nibz, "for people", prints(0, "http", "bkero", "80/tcp", "passing"), "mesh", "service", "ls")
	return nil
}

// consul has nibz answer Consul's HTTP API, and asks it.
func (d *services) consul() error {
	const toml = "/etc/mesh/mesh.toml"
	const key = "consul = [\"127.0.0.1:8500\"]\n"
	text, err := d.nibz.ReadFile(toml)
	if err != nil {
		return err
	}
	if err := d.nibz.WriteFile(toml, append([]byte(key), text...), 0o600); err != nil { // keys come before tables
		return err
	}
	d.run(d.nibz, "mesh.toml has a new key", prints(0, strings.TrimSpace(key)), "grep", "consul =", toml)
	if err := d.kill(d.nibz, d.nibz.daemon, "meshd", "TERM"); err != nil {
		return err
	}
	if err := d.up(d.nibz, time.Now()); err != nil {
		return err
	}
	d.until(d.nibz, "who offers http and is well", time.Now(), 20*time.Second, prints(0, `"Node":"bkero"`, `"Port":80`, `"passing"`), d.api()...)
	return nil
}

// api is a question to Consul's HTTP API on nibz.
func (d *services) api() []string {
	return []string{"curl", "--silent", "--show-error", "--max-time", "5", "http://127.0.0.1:8500/v1/health/service/http?passing"}
}

// signal sends one to Apache.
func (d *services) signal(name string) error {
	pid, err := d.apache.PID()
	if err != nil {
		return err
	}
	if _, ok := d.run(d.bkero, "Apache gets SIG"+name, succeeds, "kill", "-"+name, strconv.Itoa(pid)); !ok {
		return fmt.Errorf("no SIG%s reached Apache", name)
	}
	return nil
}

// stays checks that nibz still finds the service.
func (d *services) stays(claim string) {
	d.run(d.nibz, claim, resolvesOne("http", d.bkero.status.Self.Addrs), "getent", "hosts", web)
}

func (d *services) flap() error {
	begin := time.Now()
	if err := d.signal("STOP"); err != nil {
		return err
	}
	d.until(d.bkero, "the last result is bad, and the state still good", begin, 10*time.Second, prints(0, "passing → critical"), "mesh", "checks")
	if err := d.signal("CONT"); err != nil {
		return err
	}
	d.stays("nibz still finds it")
	d.until(d.bkero, "the next result is good again", time.Now(), 10*time.Second, without("→", prints(0, "HTTP OK")), "mesh", "checks")
	d.run(d.bkero, "nothing has changed since the first result", without("passing → ", prints(0, "→ passing")), "mesh", "checks", "--history")
	return nil
}

func (d *services) dies() error {
	begin := time.Now()
	if err := d.kill(d.bkero, d.apache, "apache2", "KILL"); err != nil {
		return err
	}
	d.until(d.bkero, "the check is critical after 3 results", begin, 15*time.Second, prints(1, "critical"), "mesh", "checks")
	d.until(d.nibz, "the name has left NSS on nibz, so long after the kill", begin, 15*time.Second, unknown, "getent", "hosts", web)
	brief := []string{"+nocmd", "+noquestion", "+nostats"}
	d.until(d.nibz, "in DNS it is a name without an address: NODATA, not NXDOMAIN", begin, 15*time.Second, dns("NOERROR"), d.ask(web, "A", brief...)...)
	d.run(d.nibz, "SRV likewise", dns("NOERROR"), d.ask("_http._tcp.mesh.internal", "SRV", brief...)...)
	d.run(d.nibz, "a service that nobody offers is NXDOMAIN", dns("NXDOMAIN"), d.ask("ftp.mesh.internal", "A", brief...)...)
	d.run(d.nibz, "by Consul's API there is none", nobodyOffers, d.api()...)
	d.run(d.nibz, "people see why", prints(0, "http", "critical"), "mesh", "service", "ls")
	return nil
}

func (d *services) revives() error {
	begin := time.Now()
	if err := d.serve(); err != nil {
		return err
	}
	d.until(d.nibz, "nibz finds it again, after one good result", begin, 15*time.Second, resolvesOne("http", d.bkero.status.Self.Addrs), "getent", "hosts", web)
	d.run(d.nibz, "curl", says("hello", "Apache"), curl(web)...)
	d.run(d.bkero, "what has changed", prints(0, "passing → critical", "critical → passing"), "mesh", "checks", "--history")
	return nil
}

const serviceFile = `[[service]]
type = "etcd"
port = "2379/tcp"

[[service.check]]
tcp = "spencer:2379"
interval = "2s"
`

func (d *services) file() error {
	const file = "/etc/mesh/services.d/etcd.toml"
	if r := d.try(d.spencer, "mkdir", "-p", "/etc/mesh/services.d"); r.code != 0 {
		return errors.New(r.err)
	}
	begin := time.Now()
	if err := d.spencer.WriteFile(file, []byte(serviceFile), 0o644); err != nil {
		return err
	}
	d.run(d.spencer, "spencer has a new file", prints(0, "[[service]]"), "cat", file)
	d.until(d.nibz, "nibz finds what it says, so long after it was written", begin, 10*time.Second,
		resolvesOne("etcd", d.spencer.status.Self.Addrs), "getent", "hosts", "etcd.mesh.internal")
	begin = time.Now()
	d.run(d.spencer, "the file is removed", succeeds, "rm", file)
	d.until(d.nibz, "and the name is gone", begin, 10*time.Second, unknown, "getent", "hosts", "etcd.mesh.internal")
	return nil
}

func (d *services) reports() error {
	d.run(d.bkero, "a backup must report each 5 s", succeeds, "mesh", "service", "add", "backup", "22", "--check", "ttl:5s")
	d.run(d.bkero, "it has not reported", prints(1, "not checked yet"), "mesh", "checks", "backup")
	begin := time.Now()
	d.run(d.bkero, "it reports", succeeds, "mesh", "service", "pass", "backup", "40 GB saved")
	d.until(d.nibz, "nibz knows", begin, 10*time.Second, prints(0, "passing", "40 GB saved"), "mesh", "service", "ls", "backup")
	d.until(d.nibz, "no report follows: it is critical, so long after the last", begin, 15*time.Second, prints(0, "critical"), "mesh", "service", "ls", "backup")
	d.run(d.bkero, "it is offered no more", succeeds, "mesh", "service", "rm", "backup")
	return nil
}

func (d *services) gone() error {
	begin := time.Now()
	if err := d.bkero.link.Cut(); err != nil {
		return err
	}
	d.show.note("bkero's cable is pulled out of the router")
	d.until(d.nibz, "the service goes with bkero's lease, so long after", begin, leaseLimit, unknown, "getent", "hosts", web)
	d.run(d.nibz, "bkero itself keeps its name", resolves("bkero", d.bkero.status.Self.Addrs...), "getent", "ahosts", "bkero")
	d.run(d.nibz, "people see why", prints(0, "http", "offline"), "mesh", "service", "ls")
	begin = time.Now()
	if err := d.bkero.link.Restore(); err != nil {
		return err
	}
	d.show.note("the cable is put back")
	d.until(d.nibz, "nibz finds the service again", begin, 60*time.Second, resolvesOne("http", d.bkero.status.Self.Addrs), "getent", "hosts", web)
	d.until(d.nibz, "curl", begin, 30*time.Second, says("hello", "Apache"), curl(web)...)
	d.stopApache()
	return nil
}

func (d *services) stopApache() {
	begin := time.Now()
	err := d.kill(d.bkero, d.apache, "apache2", "TERM")
	d.show.check("Apache ends", time.Since(begin), err)
}

// prints expects this exit status and these texts in the output.
func prints(code int, texts ...string) expectation {
	return func(r result) error {
		if r.code != code {
			return fmt.Errorf("exit status %d instead of %d", r.code, code)
		}
		for _, text := range texts {
			if !strings.Contains(r.out, text) {
				return fmt.Errorf("%q is not in the output", text)
			}
		}
		return nil
	}
}

// nobodyOffers expects an empty list, as JSON.
func nobodyOffers(r result) error {
	if text := strings.TrimSpace(r.out); r.code != 0 || text != "[]" {
		return fmt.Errorf("exit status %d and %q instead of an empty list", r.code, text)
	}
	return nil
}

// without expects what want does, and not this text.
func without(text string, want expectation) expectation {
	return func(r result) error {
		if strings.Contains(r.out, text) {
			return fmt.Errorf("%q is in the output", text)
		}
		return want(r)
	}
}
