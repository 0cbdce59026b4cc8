"""What the adapters' trainer sides share: a call to the server that lasts as long as the send it is about."""
from __future__ import annotations

import threading
from typing import Any, Callable, List


def send_beside(name: str, call: Callable[[], Any], send: Callable[[], Any]) -> Any:
    """What `call` returns, which runs on a thread called `name` beside `send`. Ends when both have; raises what either
    has raised, the send's with the call's as its cause."""
    answers: List[Any] = []
    failures: List[BaseException] = []

    def run() -> None:
        try:
            answers.append(call())
        except BaseException as error:
            failures.append(error)

    server = threading.Thread(target=run, name=name)
    server.start()
    try:
        send()
    except BaseException as error:
        server.join()
        if failures and isinstance(error, Exception):
            raise error from failures[0]
        raise
    server.join()
    if failures:
        raise failures[0]
    return answers[0]
