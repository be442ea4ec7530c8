"""The client, in a process of its own (it leaves sockets open): calls, waits for a line on stdin, calls again."""

import sys
import threading

import socketio

client = socketio.Client(reconnection_delay=0.05, reconnection_delay_max=0.2)
connected = threading.Event()
pids = []
client.on("connect", lambda: connected.set())
client.on("disconnect", lambda *_: connected.clear())
client.on("added", lambda event: pids.append(event["pid"]))


def call():
    assert connected.wait(20)
    for number in range(10):
        assert client.call("add", (number, 1), timeout=20) == number + 1
    print(pids[-1], flush=True)


client.connect(sys.argv[1], transports=sys.argv[2:], wait_timeout=20)
call()
sys.stdin.readline()
call()
client.disconnect()
