# SPDX-License-Identifier: MIT
"""dns.py: a DNS server on the loopback address that answers every question about an A record with 192.0.2.7."""
import socket

s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind(("127.0.0.1", 53))
open("/tmp/dns", "w").close()
while True:
    q, who = s.recvfrom(512)
    end = q.index(b"\0", 12) + 5
    a = q[end - 4:end - 2] == b"\0\1"
    answer = b"\xc0\x0c\0\1\0\1\0\0\0\1\0\4\xc0\0\2\7" if a else b""
    s.sendto(q[:2] + b"\x81\x80\0\1\0" + bytes([a]) + b"\0\0\0\0" + q[12:end] + answer, who)
