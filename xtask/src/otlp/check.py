"""Pushes over OTLP to receivers that are not lockwatch's, and looks at what they have.

usage: check.py PROGRAM PROMETHEUS DOCS

PROGRAM is the example push-otlp, PROMETHEUS the server, DOCS docs/opentelemetry.md. All is
on loopback, and all that is started here is ended here.
"""

import sys

import flaky
import prometheus
import whole


def main():
    program, server, docs = sys.argv[1:]
    for check in (*whole.CHECKS, *flaky.CHECKS):
        tell(check.__name__, check(program))
    tell("prometheus", prometheus.check(program, server, docs))


def tell(name, note):
    print(f"{name}: {note or 'as it should be'}", flush=True)


main()
