"""Flask: a WSGI application as most people write it."""

import os
import time

from flask import Flask, Response, jsonify, request, send_file, stream_with_context, url_for

app = Flask(__name__)


@app.get("/")
def home():
    return jsonify(pid=os.getpid(), root=request.root_path, url=url_for("home", _external=True))


@app.post("/upload")
def upload():
    file = request.files["file"]
    return jsonify(pid=os.getpid(), name=file.filename, size=len(file.read()))


@app.post("/echo")
def echo():
    return Response(request.get_data(), mimetype="application/octet-stream")


@app.get("/stream")
def stream():
    def lines():
        yield f"begun {request.path}\n"
        while not os.path.exists("enough"):
            yield "on\n"
            time.sleep(0.02)
        yield "end\n"

    return Response(stream_with_context(lines()), mimetype="text/plain")


@app.get("/file")
def file():
    return send_file(os.path.abspath("file.bin"), conditional=True)


@app.get("/fail")
def fail():
    raise ValueError("as it must")
