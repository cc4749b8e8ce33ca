# SPDX-License-Identifier: MIT
"""multi.py processes|prefork: a server of many processes and threads that asks for bkero in all of them."""
import multiprocessing
import os
import socket
import sys
import threading


def ask(wrong):
    try:
        if socket.gethostbyname("bkero") != "10.11.0.2":
            wrong.append(1)
    except OSError as e:
        wrong.append(e)


def threads(n, times):
    wrong = []

    def work():
        for _ in range(times):
            ask(wrong)

    ts = [threading.Thread(target=work, daemon=True) for _ in range(n)]
    for t in ts:
        t.start()
    for t in ts:
        t.join(5)
        if t.is_alive():
            os._exit(3)
    os._exit(1 if wrong else 0)


def verdict(codes, what):
    hung, wrong = codes.count(3), sum(c not in (0, 3) for c in codes)
    if hung or wrong:
        print("**%s: %d of %d %s**" % ("hangs" if hung else "wrong", hung + wrong, len(codes), what))
        sys.exit(1)
    print("%d %s" % (len(codes), what))


def processes():
    multiprocessing.set_start_method("fork")
    codes = []
    for _ in range(100):
        p = multiprocessing.Process(target=threads, args=(16, 1))
        p.start()
        p.join()
        codes.append(p.exitcode)
        if codes.count(3) == 2:
            break
    verdict(codes, "processes")


def prefork():
    codes = []
    for _ in range(10):
        pids = []
        for _ in range(8):
            pid = os.fork()
            if pid == 0:
                threads(8, 25)
            pids.append(pid)
        codes += [os.waitstatus_to_exitcode(os.waitpid(p, 0)[1]) for p in pids]
        if 3 in codes:
            break
    verdict(codes, "workers of 8 threads")


ask([])  # the parent has resolved, as a server does with its own name
{"processes": processes, "prefork": prefork}[sys.argv[1]]()
