"""The template process, from its first instruction on (`serve_asgi.template_process.process`).

A worker that is forked from it continues here, as `serve_asgi.worker.main`.
"""

from __future__ import annotations

from serve_asgi.template_process.process import TemplateProcess
from serve_asgi.worker import main as worker
from serve_asgi.worker.bootstrap import read_arguments


def main() -> None:
    """Run the template whose channel is the descriptor on the command line; never returns."""
    template = TemplateProcess(read_arguments("serve_asgi.template_process"))
    application = template.prepare()
    worker.main(template.run(), application)


if __name__ == "__main__":
    main()
