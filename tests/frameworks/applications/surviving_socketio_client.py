"""The client, in a process of its own: says some things, waits until they are acknowledged and told, prints that."""

import queue
import sys
import threading

import socketio

client = socketio.Client(reconnection=False)
told = queue.Queue()
client.on("said", told.put)
client.connect(sys.argv[1], transports=["websocket"], wait_timeout=20)
threading.Thread(target=lambda: (sys.stdin.readline(), client.disconnect()), daemon=True).start()
number = 0
while True:
    for ahead in range(1, 3):
        client.emit("say", f"message {number + ahead}")
    number += 3
    assert client.call("say", f"message {number}", timeout=20) == number
    for line in sorted((told.get(timeout=20) for _ in range(3)), key=lambda line: int(line.split()[0])):
        print(line, flush=True)  # sorted, as this client handles each message in a thread of its own
