"""The bridge between the engine's thread and coroutines: every answer reaches its caller, and only that one."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from devicekit.engine import Engine, EngineConfig
from devicekit.scheduling.errors import InvalidRequest
from devicekit.scheduling.messages import Flush, Operation, Pause, PauseMode, PauseReply, Reply
from devicekit.scheduling.request import FinishKind, Request, SamplingParams, prompt_array
from devicekit.server.errors import EngineStopped
from devicekit.server.loop import EngineLoop
from tests.server.conftest import Models, Serve

Scenario = Callable[[EngineLoop], Awaitable[None]]


@pytest.fixture
def run(models: Models) -> Callable[[Scenario], Engine]:
    """``run(scenario)``: a loop over a fresh engine, which stops when the scenario ends."""

    def play(scenario: Scenario) -> Engine:
        engine = Engine.open(models.a, "cpu", config=EngineConfig(max_running=4))
        loop = EngineLoop(engine.scheduler)

        async def main() -> None:
            loop.start()
            try:
                await asyncio.wait_for(scenario(loop), 30)
            finally:
                await loop.stop()

        asyncio.run(main())
        return engine

    return play


def _request(identity: str, tokens: int = 4, *, stream: bool = False) -> Request:
    params = SamplingParams(max_new_tokens=tokens, temperature=0, ignore_eos=True)
    return Request(identity, prompt_array([3, 4, 5]), params, stream=stream)


def test_outputs_reach_those_who_submitted(run: Callable[[Scenario], Engine]) -> None:
    async def scenario(loop: EngineLoop) -> None:
        async def one(index: int) -> list[str]:
            outputs = loop.submit([_request(f"{index}", 2 + index, stream=index % 2 == 0)])
            return [output.id async for output in outputs]

        for index, ids in enumerate(await asyncio.gather(*map(one, range(12)))):
            assert set(ids) == {f"{index}"}
        assert loop.in_flight == 0

    run(scenario)


def test_a_cancelled_caller_leaves_no_answer_to_the_next(run: Callable[[Scenario], Engine]) -> None:
    async def scenario(loop: EngineLoop) -> None:
        await loop.perform(Pause("pause", PauseMode.IN_PLACE))
        first = asyncio.ensure_future(loop.perform(Flush("first", 60.0)))
        gone = [asyncio.ensure_future(loop.perform(Pause(f"{one}", PauseMode.ABORT))) for one in range(5)]
        await asyncio.sleep(0)  # all are posted
        for one in gone:
            one.cancel()
        reply = await loop.perform(Pause("mine", PauseMode.RETRACT))
        assert isinstance(reply, PauseReply)
        assert reply.id == "mine"
        assert (await first).id == "first"
        assert not loop.pending

    run(scenario)


def test_an_abandoned_request_is_aborted_and_its_id_stays_taken_until_then(
    run: Callable[[Scenario], Engine],
) -> None:
    async def scenario(loop: EngineLoop) -> None:
        outputs = loop.submit([_request("x", 400, stream=True)])
        async for _ in outputs:
            break
        outputs.close()
        with pytest.raises(InvalidRequest, match="in flight"):
            loop.submit([_request("x")])
        while loop.in_flight:
            await loop.perform(Flush("look"))
        [*_, last] = [output async for output in loop.submit([_request("x", 3)])]
        assert last.finish is not None
        assert (last.finish.kind, last.output_tokens) == (FinishKind.LENGTH, 3)

    engine = run(scenario)
    assert not engine.scheduler.state.requests


def test_of_a_group_with_one_bad_request_none_is_submitted(run: Callable[[Scenario], Engine]) -> None:
    async def scenario(loop: EngineLoop) -> None:
        with pytest.raises(InvalidRequest):
            loop.submit([_request("good"), _request("bad", -1)])
        assert loop.in_flight == 0

    run(scenario)


def test_a_fault_of_the_engine_is_told_to_everyone_who_waits_and_to_all_who_come(
    run: Callable[[Scenario], Engine], models: Models
) -> None:
    async def scenario(loop: EngineLoop) -> None:
        outputs = loop.submit([_request("x", 400)])
        waiting = asyncio.ensure_future(loop.perform(_Trap("trap")))
        for answer in (waiting, asyncio.ensure_future(anext(aiter(outputs)))):
            with pytest.raises(EngineStopped, match="KeyboardInterrupt: bang"):
                await answer
        with pytest.raises(EngineStopped):
            loop.submit([_request("y")])
        with pytest.raises(EngineStopped):
            await loop.perform(Flush("late"))

    class _Trap(Operation):
        pass

    def handler(operation: Operation) -> Reply:
        raise KeyboardInterrupt("bang")  # nothing that an operation's own errors could be taken for

    engine = Engine.open(models.a, "cpu", config=EngineConfig())
    engine.scheduler.control.register(_Trap, handler)
    loop = EngineLoop(engine.scheduler)

    async def main() -> None:
        loop.start()
        await asyncio.wait_for(scenario(loop), 30)
        await loop.stop()

    asyncio.run(main())


def test_stopping_answers_everyone(run: Callable[[Scenario], Engine]) -> None:
    async def scenario(loop: EngineLoop) -> None:
        await loop.perform(Pause("pause", PauseMode.IN_PLACE))
        outputs = loop.submit([_request("x")])
        reading = asyncio.ensure_future(anext(aiter(outputs)))
        await asyncio.sleep(0)
        await loop.stop()
        with pytest.raises(EngineStopped, match="stopping"):
            await reading

    run(scenario)


def test_a_server_whose_engine_died_says_so(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    def die() -> None:
        raise RuntimeError("a pipe burst")

    with serve() as server:
        with server.running() as stream:
            monkeypatch.setattr(server.serving.engine.scheduler, "step", die)
            [*_, last] = stream
        assert "a pipe burst" in last["error"]["message"]
        for path in ("/health", "/health_generate", "/ready"):
            answer = server.get(path)
            assert answer.status_code == 503
            assert "a pipe burst" in answer.json()["error"]["message"]
        answer = server.post("/generate", {"text": "a"})
        assert answer.status_code == 503
        assert server.get("/flush_cache").status_code == 503
        assert "devicekit_healthy 0.0" in server.get("/metrics").text


def test_a_pass_that_fails_ends_its_requests_and_not_the_server(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(batch: object) -> None:
        raise RuntimeError("a kernel failed")

    with serve() as server:
        with monkeypatch.context() as patch:
            patch.setattr(server.serving.engine.runner, "step", fail)
            answer = server.post("/generate", {"text": "a"})
            assert answer.status_code == 500
            assert "a kernel failed" in answer.json()["error"]["message"]
            with server.streaming({"text": "a"}) as stream:
                assert "a kernel failed" in next(stream)["error"]["message"]
        assert server.generate()["output_ids"]
