"""Connexion: routes, validation and handlers from an OpenAPI description."""

import os

from connexion import AsyncApp

SPECIFICATION = {
    "openapi": "3.0.0",
    "info": {"title": "numbers", "version": "1"},
    "paths": {
        "/square/{number}": {
            "get": {
                "operationId": "connexion_app.square",
                "parameters": [{"name": "number", "in": "path", "required": True, "schema": {"type": "integer"}}],
                "responses": {"200": {"description": "its square"}},
            }
        },
        "/items": {
            "post": {
                "operationId": "connexion_app.add",
                "requestBody": {
                    "content": {
                        "application/json": {
                            "schema": {
                                "type": "object",
                                "required": ["name"],
                                "properties": {"name": {"type": "string"}},
                            }
                        }
                    }
                },
                "responses": {"201": {"description": "added"}},
            }
        },
    },
}


async def square(number):
    return {"pid": os.getpid(), "square": number * number}


def add(body):
    return {"pid": os.getpid(), "added": body["name"]}, 201


app = AsyncApp(__name__)
app.add_api(SPECIFICATION)
