"""Datasette on a small database in the working directory."""

import os
import sqlite3
import sys

from datasette.app import Datasette
from datasette.hookspecs import hookimpl
from datasette.plugins import pm
from datasette.utils.asgi import Response

if not os.path.exists("data.db"):
    database = sqlite3.connect("data.db")
    database.execute("create table numbers (number integer primary key, square integer)")
    database.executemany("insert into numbers values (?, ?)", [(n, n * n) for n in range(2000)])
    database.commit()
    database.close()


@hookimpl
def register_routes():
    async def pid():
        return Response.json({"pid": os.getpid()})

    return [(r"^/-/pid$", pid)]


pm.register(sys.modules[__name__])
app = Datasette(["data.db"], settings={"num_sql_threads": 1}).app()
