# SPDX-License-Identifier: MIT
"""requests.py URL N: N requests, 8 at a time; fails if one does."""
import concurrent.futures
import sys
import urllib.request


def get(_):
    with urllib.request.urlopen(sys.argv[1], timeout=10) as r:
        return r.status


with concurrent.futures.ThreadPoolExecutor(8) as pool:
    done = list(pool.map(get, range(int(sys.argv[2]))))
print(len(done), "requests")
