"""The FastAPI and SQLAlchemy application of `loadtest.preload`: twenty tables, each with a router and models."""

# mypy: ignore-errors

from __future__ import annotations

import os
from typing import Any

from fastapi import APIRouter, FastAPI
from pydantic import BaseModel, create_model
from sqlalchemy import ForeignKey, create_engine, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

TABLES = 20
"""As many as a small application has."""


class Base(DeclarativeBase):
    """Of all tables."""


def table(number: int) -> tuple[type[Any], type[BaseModel]]:
    """A table that refers to the one before it, and the model of its rows."""
    members: dict[str, Any] = {
        "__tablename__": f"thing_{number}",
        "__annotations__": {"id": Mapped[int], "name": Mapped[str], "size": Mapped[float]},
        "id": mapped_column(primary_key=True),
        "name": mapped_column(),
        "size": mapped_column(),
    }
    if number:
        members["before_id"] = mapped_column(ForeignKey(f"thing_{number - 1}.id"))
        members["__annotations__"]["before_id"] = Mapped[int]
    return type(f"Thing{number}", (Base,), members), create_model(f"ThingModel{number}", id=int, name=str, size=float)


app = FastAPI(title="Things")
engine = create_engine("sqlite://")


def router(number: int) -> APIRouter:
    """Reading and writing the rows of a table."""
    thing, model = table(number)
    made = APIRouter(prefix=f"/things/{number}")

    @made.get("/", response_model=list[model])
    async def all_of_them(limit: int = 10) -> Any:
        with Session(engine) as session:
            return list(session.scalars(select(thing).limit(limit)))

    async def one_more(item: Any) -> Any:
        return item

    one_more.__annotations__["item"] = model
    made.post("/", response_model=model)(one_more)
    return made


for each in range(TABLES):
    app.include_router(router(each))


class Answer(BaseModel):
    """Which process has answered."""

    pid: int


@app.get("/")
async def who() -> Answer:
    """Compiles a statement, validates and serializes."""
    str(select(*Base.metadata.tables["thing_3"].columns).limit(5).compile(engine))
    return Answer(pid=os.getpid())


app.openapi()
