"""Render one chat template; run by render.py as a program of its own, in a child process that limits itself.

It imports nothing of quantkit and nothing of a model's.  It says `ready` on stdout, reads one JSON object from stdin,
shuts every door it does not need, renders, and answers with one JSON object.  What transformers gives templates
(trim_blocks, loop controls, raise_exception, ...) is here too: transformers/utils/chat_template_utils.py.
"""

from __future__ import annotations

import json
import math
import resource
import sys
from datetime import datetime
from typing import Any

import jinja2
import jinja2.ext
import jinja2.sandbox

LONGEST = 1 << 20  # characters that a conversation of three sentences can become


# Between them they import what jinja2 imports only when it is needed: once limited, no file can be opened.
WARM_UP = ("{% for x in [1] %}{{ x | tojson }}{{ strftime_now('%Y') }}{% endfor %}", "{{", "{{ raise_exception('') }}")


class Generation(jinja2.ext.Extension):
    """`{% generation %}` around what the assistant says: a mark for training, that changes nothing here."""

    tags = {"generation"}  # noqa: RUF012 as jinja2 has it

    def parse(self, parser: jinja2.parser.Parser) -> Any:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def refuse(message: str) -> None:
    """What templates call as raise_exception."""
    raise jinja2.TemplateError(message)


def environment() -> jinja2.Environment:
    """What a template may use."""
    made = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols, Generation]
    )
    made.filters["tojson"] = lambda value, **options: json.dumps(value, ensure_ascii=False, **options)
    made.globals["raise_exception"] = refuse
    made.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return made


def limit(seconds: float, memory_bytes: int) -> None:
    """From here on: so much processor time and address space, no new file or socket, no process, nothing written."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    cpu = math.ceil(used.ru_utime + used.ru_stime + seconds)
    limits = {
        resource.RLIMIT_AS: memory_bytes,
        resource.RLIMIT_CPU: cpu,
        resource.RLIMIT_NOFILE: 3,  # stdin, stdout, stderr
        resource.RLIMIT_NPROC: 0,
        resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_CORE: 0,
    }
    for kind, value in limits.items():
        resource.setrlimit(kind, (value, value))


def render(made: jinja2.Environment, template: str, variables: dict[str, Any]) -> dict[str, str]:
    """{"text": what it renders to}, or {"problem": why it does not}."""
    pieces, length = [], 0
    try:
        for piece in made.from_string(template).generate(**variables):
            length += len(piece)
            if length > LONGEST:
                return {"problem": f"renders to more than {LONGEST} characters"}
            pieces.append(piece)
    except MemoryError:
        return {"problem": "wants more memory than it may have"}
    except RecursionError:
        return {"problem": "is nested too deeply"}
    except Exception as error:  # whatever a template can be made to raise
        return {"problem": f"{type(error).__name__}: {str(error)[:200]}"}
    return {"text": "".join(pieces)}


def main() -> None:
    made = environment()
    for template in WARM_UP:
        render(made, template, {})
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    job = json.loads(sys.stdin.readline())
    limit(job["seconds"], job["memory_bytes"])
    sys.stdout.write(json.dumps(render(made, job["template"], job["variables"])))
    sys.stdout.flush()


if __name__ == "__main__":
    main()
