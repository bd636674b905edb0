"""A round-robin router for two servers: `python -m benchmarks.proofs.round_robin PORT URL URL`.

It listens on 127.0.0.1. Chats go to the two servers in turn, all other requests to the first.
"""

import itertools
import sys
from collections.abc import AsyncIterator

import aiohttp
from aiohttp import web

FORWARDED = ("Content-Type", "X-Request-Id", "Authorization")


def application(urls: list[str]) -> web.Application:
    turn = itertools.cycle(urls)

    async def session(app: web.Application) -> AsyncIterator[None]:
        connector = aiohttp.TCPConnector(limit=0)
        timeout = aiohttp.ClientTimeout(total=None)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout) as app["session"]:
            yield

    async def forward(request: web.Request) -> web.StreamResponse:
        url = next(turn) if request.path.endswith("/chat/completions") else urls[0]
        headers = {name: request.headers[name] for name in FORWARDED if name in request.headers}
        async with request.app["session"].request(
            request.method, url + request.path_qs, data=await request.read(), headers=headers
        ) as answer:
            response = web.StreamResponse(
                status=answer.status,
                headers={"Content-Type": answer.headers.get("Content-Type", "text/plain")},
            )
            await response.prepare(request)
            async for piece in answer.content.iter_any():
                await response.write(piece)
            await response.write_eof()
            return response

    app = web.Application(client_max_size=2**26)
    app.cleanup_ctx.append(session)
    app.router.add_route("*", "/{path:.*}", forward)
    return app


if __name__ == "__main__":
    web.run_app(
        application(sys.argv[2:]), host="127.0.0.1", port=int(sys.argv[1]), print=None, access_log=None
    )
