"""Serves the page, only to those who may reach it."""

import contextlib
import hmac
import os
import signal
import socket
import sys
import warnings
from collections.abc import Callable, Sequence

from local_modules.errors import RunError
from local_modules.page.access import find_address, find_password, is_loopback
from local_modules.page.answers import Answers
from local_modules.page.hearing import MAX_MEGABYTES
from local_modules.page.uploads import uploads_folder
from local_modules.templates import TEMPLATES

# The page is self-contained: a browser loads nothing from elsewhere.
POLICY = (
    "default-src 'self' data: blob: 'unsafe-inline' 'unsafe-eval'; "
    "frame-ancestors 'none'; form-action 'self'"
)
MAX_WAITING = 20  # requests


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
    """Serves the page until Ctrl-C.

    Arguments
    ---------
    answers : Answers
        What answers the requests.
    model_name : str
        The model's name.
    host : str
        Where to listen; if others can reach it, a password is required.
    port : int
        0 for any free port.

    Raises
    ------
    InputError
        There is no such host, or others can reach it and there is no password.
    RunError
        Listening on the port is not possible.
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
                f"--host {host} --port {port}: can't listen there: {error.strerror}; "
                "choose another --port, or 0 for any free one"
            ) from None
        # Service managers send SIGTERM; it ends the page as Ctrl-C does.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        # So does a terminal that is closed, except on Windows and under nohup.
        hangup = getattr(signal, "SIGHUP", signal.SIGTERM)
        if signal.getsignal(hangup) is signal.SIG_DFL:
            signal.signal(hangup, lambda *_: signal.raise_signal(signal.SIGTERM))
        folder = stack.enter_context(uploads_folder())
        os.environ["GRADIO_TEMP_DIR"] = str(folder)
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

        # A browser that shows the page holds a connection open: wait a second for it.
        config = uvicorn.Config(app, log_level="critical", timeout_graceful_shutdown=1)
        uvicorn.Server(config).run(sockets=[listening])


def make_app(
    answers: Answers, model_name: str, password: str | None, names: Sequence[str] | None
) -> Callable:
    """The page as an ASGI application, with its access control.

    Arguments
    ---------
    answers, model_name
        See `serve`.
    password : str | None
        The password to enter first, if any.
    names : sequence of str | None
        Host names that a browser may use for it, against DNS rebinding; None for any.

    Returns
    -------
    callable
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read while it is imported
    # Imported here, because they take seconds, which other commands should not.
    import gradio
    import safehttpx
    from fastapi import FastAPI
    from gradio import processing_utils
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    from local_modules.page.layout import build, theme

    # A request may name a URL in place of a recording, and Gradio would load it.
    safehttpx.async_validate_url = _refuse
    processing_utils.PUBLIC_HOSTNAME_WHITELIST.clear()
    page = build(answers, model_name).queue(max_size=MAX_WAITING)
    # A request may name a file, too. Only if the page is launched, Gradio checks that
    # it was uploaded; and mounting a page doesn't launch it.
    page.has_launched = True
    # The browser renders the scripts that Matplotlib's own font lacks.
    warnings.filterwarnings("ignore", "Glyph .* missing from")
    around = [Middleware(FromHereOnly)]
    if names is not None:
        around.append(Middleware(TrustedHostMiddleware, allowed_hosts=names))
    return gradio.mount_gradio_app(
        FastAPI(openapi_url=None, middleware=around),
        page,
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
        css_paths=TEMPLATES / "page.css",
    )


async def _refuse(host: str) -> str:
    raise ValueError(f"{host}: is not asked")


def _same(given: str, password: str) -> bool:
    return hmac.compare_digest(given.encode(), password.encode())
