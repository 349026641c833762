"""Serves the page, to nobody but those who may reach it."""

import contextlib
import hmac
import os
import signal
import socket
import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence

from local_modules.errors import RunError
from local_modules.page.access import find_address, find_password, is_loopback
from local_modules.page.answers import Answers
from local_modules.page.hearing import MAX_MEGABYTES

# The page has all that it needs; a browser loads nothing from elsewhere.
POLICY = (
    "default-src 'self' data: blob: 'unsafe-inline' 'unsafe-eval'; "
    "frame-ancestors 'none'; form-action 'self'"
)
MAX_WAITING = 20  # questions


class FromHereOnly:
    """ASGI middleware that tells the browser to load from this server only."""

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        async def send_with_policy(message):
            if message["type"] == "http.response.start":
                message["headers"].append((b"content-security-policy", POLICY.encode()))
            await send(message)

        await self.app(scope, receive, send_with_policy)


def serve(answers: Answers, model_name: str, host: str, port: int) -> None:
    """Shows the page until Ctrl-C.

    Arguments
    ---------
    answers : Answers
        Who answers.
    model_name : str
        What the model is called.
    host : str
        Where to listen; where others reach it, with a password.
    port : int
        0 for any that is free.

    Raises
    ------
    InputError
        No such host, or one that others reach and no password.
    RunError
        The port can't be listened on.
    """
    family, address = find_address(host, port)
    password = find_password(host, address)
    with contextlib.ExitStack() as stack:
        try:
            listening = stack.enter_context(
                socket.create_server(address[:2], family=family)
            )
        except OSError as error:
            raise RunError(
                f"--host {host} --port {port}: can't be listened on: {error.strerror}; "
                "name another --port, or 0 for any that is free"
            ) from None
        # A service manager's way of saying Ctrl-C.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="speaker-"))
        os.environ["GRADIO_TEMP_DIR"] = folder
        stack.enter_context(contextlib.suppress(KeyboardInterrupt))
        where = f"[{address[0]}]" if family == socket.AF_INET6 else address[0]
        names = [where, "localhost"] if is_loopback(address) else None
        app = make_app(answers, model_name, password, names)
        print(
            f"The page is at http://{where}:{listening.getsockname()[1]}/\n"
            "Ctrl-C ends it.",
            file=sys.stderr,
        )
        import uvicorn

        # A browser that looks on holds a connection open: it has a second to let go.
        config = uvicorn.Config(app, log_level="critical", timeout_graceful_shutdown=1)
        uvicorn.Server(config).run(sockets=[listening])


def make_app(
    answers: Answers, model_name: str, password: str | None, names: Sequence[str] | None
) -> Callable:
    """The page as an ASGI application, with what guards it.

    Arguments
    ---------
    answers, model_name
        See `serve`.
    password : str | None
        What has to be given first, if anything.
    names : sequence of str | None
        Hosts that a browser may call it by; None for any. Somebody else's domain may
        be made to mean this machine.

    Returns
    -------
    callable
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read while it is imported
    # They take seconds, which no other command has to spend.
    import gradio
    from fastapi import FastAPI
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    from local_modules.page.layout import build, css_file, theme

    # Scripts that Matplotlib's own font lacks are the browser's to write.
    warnings.filterwarnings("ignore", "Glyph .* missing from")
    around = [Middleware(FromHereOnly)]
    if names is not None:
        around.append(Middleware(TrustedHostMiddleware, allowed_hosts=names))
    return gradio.mount_gradio_app(
        FastAPI(openapi_url=None, middleware=around),
        build(answers, model_name).queue(max_size=MAX_WAITING),
        path="/",
        auth=password and (lambda _, given: _same(given, password)),
        auth_message="Any name, and the password of this page.",
        max_file_size=MAX_MEGABYTES * 10**6,
        show_error=False,
        footer_links=[],
        run_history=False,  # it would keep recordings in the browser
        enable_monitoring=False,
        ssr_mode=False,
        mcp_server=False,
        pwa=False,
        theme=theme(),
        css_paths=css_file(),
    )


def _same(given: str, password: str) -> bool:
    return hmac.compare_digest(given.encode(), password.encode())
