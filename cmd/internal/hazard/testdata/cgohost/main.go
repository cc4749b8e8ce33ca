// SPDX-License-Identifier: MIT

// Command cgohost is a Go program with cgo, whose resolver is glibc's: 64 goroutines look a name up while others cause
// collections and nil dereferences and a CPU profile is taken.
package main

import "C"

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"runtime/pprof"
	"sync"
	"sync/atomic"
	"time"
)

func main() {
	if err := pprof.StartCPUProfile(io.Discard); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
	defer cancel()
	var good, bad atomic.Int64
	var wg sync.WaitGroup
	for range 64 {
		wg.Go(func() {
			for ctx.Err() == nil {
				if a, err := net.DefaultResolver.LookupHost(context.Background(), "bkero"); err != nil || len(a) != 2 {
					bad.Add(1)
				} else {
					good.Add(1)
				}
			}
		})
	}
	wg.Go(func() {
		for ctx.Err() == nil {
			runtime.GC()
		}
	})
	wg.Go(func() {
		for ctx.Err() == nil {
			func() {
				defer func() { recover() }()
				var p *int
				*p = 1
			}()
		}
	})
	wg.Wait()
	pprof.StopCPUProfile()
	fmt.Printf("64 goroutines, %d wrong\n", bad.Load())
	if bad.Load() > 0 || good.Load() == 0 {
		os.Exit(1)
	}
}
