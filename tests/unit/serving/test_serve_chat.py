"""Chat completions, as OpenAI's client asks for them: the answers are those of the model under the edits."""

from pathlib import Path
from typing import Any

import httpx
import pytest
from conversing import MODEL, Serve, Service, data_url, told, user

from unike.backbones.adapter import Backbone
from unike.backbones.decoding import Decoding
from unike.data.queries import Query, Turn
from unike.edits.edit import Edit
from unike.edits.edited import EditedModel


@pytest.fixture(scope="module")
def service(serving: Serve, edits: dict[str, Edit]) -> Service:
    found = serving(max_prompt=2000)
    found.store.add(edits["a"], set="tenant-a", author="t")
    return found


def test_an_answer_is_what_the_model_says(service: Service, model: Backbone, pictures: list[Path]) -> None:
    assert service.say("What is this?") == model.ask(None, "What is this?")
    assert service.say("What is this?", image=pictures[0]) == model.ask(pictures[0], "What is this?")
    assert service.say("What is this?", image=pictures[1]) == model.ask(pictures[1], "What is this?")


def test_under_a_set_it_is_what_the_edited_model_says(
    service: Service, model: Backbone, edits: dict[str, Edit], pictures: list[Path]
) -> None:
    expected = EditedModel(model, [edits["a"]]).ask(pictures[0], "What is this?")
    assert expected != model.ask(pictures[0], "What is this?")
    assert service.say("What is this?", f"{MODEL}@tenant-a", image=pictures[0]) == expected
    for edits_named in ("tenant-a", "tenant-a:1", [service.store.members("tenant-a")[0].id]):
        assert service.say("What is this?", image=pictures[0], extra_body={"edits": edits_named}) == expected
    before = service.say("What is this?", image=pictures[0], extra_body={"edits": "tenant-a:0"})
    assert before == model.ask(pictures[0], "What is this?")
    assert service.say("What is this?", image=pictures[0], extra_body={"edits": []}) == before


def test_which_edits_were_in_force_is_told(service: Service) -> None:
    response = service.post(model=f"{MODEL}@tenant-a")
    assert response.headers["x-unike-edits"] == "tenant-a:1"
    assert "x-unike-edits" not in service.post().headers


def test_several_turns_with_a_system_message_and_a_picture(
    service: Service, model: Backbone, pictures: list[Path]
) -> None:
    shown = {"type": "image_url", "image_url": {"url": data_url(pictures[1])}}
    messages: Any = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [shown, {"type": "text", "text": "What is this?"}]},
        {"role": "assistant", "content": "a flag"},
        {"role": "user", "content": "Whose"},
        {"role": "user", "content": "is it?"},
    ]
    answer = service.client.chat.completions.create(model=MODEL, messages=messages)
    history = (Turn("What is this?", "a flag"),)
    query = Query("Whose\nis it?", pictures[1], history=history, system="Be brief.")
    assert [answer.choices[0].message.content] == model.generate([query])
    later = [
        messages[0],
        user("What is this?")[0],
        messages[2],
        {"role": "user", "content": [shown, *_text("Whose\nis it?")]},
    ]
    again = service.client.chat.completions.create(model=MODEL, messages=later)
    assert again.choices[0].message.content == answer.choices[0].message.content  # it is shown at first


def _text(text: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": text}]


def test_pieces_of_a_stream_are_the_answer(service: Service) -> None:
    messages: Any = user("Which colour has it?")
    whole = service.client.chat.completions.create(model=MODEL, messages=messages, max_tokens=12)
    stream = service.client.chat.completions.create(
        model=MODEL, messages=messages, max_tokens=12, stream=True, stream_options={"include_usage": True}
    )
    *chunks, last = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole.choices[0].message.content
    assert len(chunks) > 4 and chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in chunks][-2:] == [None, whole.choices[0].finish_reason]
    assert last.choices == [] and last.usage == whole.usage
    assert len({chunk.id for chunk in (*chunks, last)}) == 1


def test_a_stream_of_several_answers(service: Service) -> None:
    asked: dict[str, Any] = {"model": MODEL, "messages": user("Who?"), "n": 3, "temperature": 1.5, "seed": 7}
    whole = service.client.chat.completions.create(**asked)
    said = {0: "", 1: "", 2: ""}
    for chunk in service.client.chat.completions.create(**asked, stream=True):
        said[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert list(said.values()) == [choice.message.content for choice in whole.choices]
    assert len(set(said.values())) == 3


def test_length_stops_and_usage(service: Service, model: Backbone) -> None:
    query = Query("Whose flag is this?")
    way = Decoding(9)
    (plain,) = model.generate([query], decoding=[way])
    found = service.client.chat.completions.create(model=MODEL, messages=user(query.prompt), max_completion_tokens=9)
    assert found.usage is not None and found.usage.prompt_tokens == way.prompt_tokens
    assert found.usage.completion_tokens == len(way.tokens)
    assert found.usage.total_tokens == way.prompt_tokens + len(way.tokens)
    assert found.choices[0].finish_reason == way.reason
    stop = plain[len(plain) // 2 :][:2]
    cut = service.client.chat.completions.create(
        model=MODEL, messages=user(query.prompt), max_tokens=9, stop=["never", stop]
    )
    assert cut.choices[0].message.content == plain[: plain.find(stop)].rstrip()
    assert cut.choices[0].finish_reason == "stop"


def test_drawing_is_repeatable(service: Service) -> None:
    ways = [{"temperature": 2.0, "seed": 1}, {"temperature": 2.0, "seed": 2}, {"temperature": 2.0, "top_p": 1e-6}, {}]
    first, other, likeliest, greedy = (service.say("Who?", **way) for way in ways)
    assert first == service.say("Who?", temperature=2.0, seed=1) != other
    assert likeliest == greedy == service.say("Who?", temperature=0)


def test_lines_are_let_through_where_wanted(serving: Serve, service: Service, model: Backbone) -> None:
    ways = [Decoding(40, temperature=2.0, seed=seed) for seed in range(40)]
    drawn = model.generate([Query("Who?")] * len(ways), decoding=ways)
    seed = next(seed for seed, answer in enumerate(drawn) if "\n" in answer)
    way: dict[str, Any] = {"max_tokens": 40, "temperature": 2.0, "seed": seed}
    assert service.say("Who?", **way) == drawn[seed].split("\n")[0].strip()
    assert serving(lines=True).say("Who?", **way) == drawn[seed]


def test_models_are_the_model_and_its_sets(service: Service) -> None:
    assert [each.id for each in service.client.models.list()] == [MODEL, f"{MODEL}@tenant-a"]
    assert service.client.models.retrieve(f"{MODEL}@tenant-a").id == f"{MODEL}@tenant-a"
    assert "there is no model 'gpt-4'" in told(service.http.get("/models/gpt-4"), 404)
    for name in (f"{MODEL}@tenant-a:1", f"{MODEL}@tenant-a:0", f"{MODEL}@default", f"{MODEL}@default:0", MODEL):
        assert service.client.models.retrieve(name).id == name


@pytest.mark.parametrize("name", ["gpt-4", "tiny@x", "tiny@default:99", "tiny@tenant-a:2", "tiny@tenant-a:x", "tiny@:"])
def test_a_model_is_there_if_a_chat_is_answered_by_it(service: Service, name: str) -> None:
    asked, looked = service.post(model=name), service.http.get(f"/models/{name}")
    assert asked.status_code == looked.status_code >= 400 and asked.json() == looked.json()
    assert told(looked, looked.status_code)


def test_fields_that_ask_for_nothing_are_taken(service: Service) -> None:
    neutral = {"frequency_penalty": 0, "logprobs": False, "tools": [], "response_format": {"type": "text"}, "user": "u"}
    assert service.post(**neutral, metadata={"a": "b"}, logit_bias=None).status_code == 200


def _image(url: Any) -> list[dict[str, Any]]:
    return [{"type": "image_url", "image_url": url}]


REFUSED: list[tuple[dict[str, Any], int, str]] = [
    ({"model": "gpt-4"}, 404, "there is no model 'gpt-4' here; it is 'tiny', or 'tiny@SET' with edits"),
    ({"model": "tiny@nobody"}, 404, "there is no set 'nobody' of edits (known: default, tenant-a)"),
    ({"edits": "tenant-a:9"}, 404, "the set 'tenant-a' has the versions 0 to 1, and no 9"),
    ({"edits": "tenant-a:x"}, 400, "'x' is no version of the set 'tenant-a'; write tenant-a:7, for example"),
    ({"edits": ["ffff"]}, 404, "there is no edit that begins with 'ffff'"),
    ({"model": "tiny@tenant-a", "edits": "tenant-a"}, 400, "leave one of them out"),
    ({"tools": [{"type": "function"}]}, 400, "tools is not supported here; leave it out"),
    ({"logprobs": True}, 400, "logprobs is not supported here"),
    ({"response_format": {"type": "json_object"}}, 400, "response_format is not supported here"),
    ({"audio": {"voice": "x"}}, 400, "audio is not supported here"),
    ({"frequency_penalty": 1}, 400, "frequency_penalty is not supported here"),
    ({"top_k": 5}, 400, "the field 'top_k' is not known here; leave it out"),
    ({"n": 0}, 400, "n: "),
    ({"n": 17}, 400, "n is 17; it is at most 16 here"),
    ({"temperature": 3}, 400, "temperature: "),
    ({"temperature": "hot"}, 400, "temperature: "),
    ({"top_p": 0}, 400, "top_p: "),
    ({"seed": 1 << 64}, 400, "seed: "),
    ({"max_tokens": 0}, 400, "max_tokens: "),
    ({"max_tokens": 5000}, 400, "max_tokens is 5000; an answer has at most 1024 here"),
    ({"stop": ["a", "b", "c", "d", "e"]}, 400, "stop is one to four texts"),
    ({"stop": ""}, 400, "stop is one to four texts"),
    ({"stream_options": {"include_usage": True}}, 400, "stream_options is for streams"),
    ({"messages": []}, 400, "messages: "),
    ({"messages": user("x" * 2001)}, 400, "the messages have more than 2,000 characters"),
    ({"messages": user("x " * 990)}, 400, "tokens"),
    ({"messages": user("  ")}, 400, "a message of the user has no text"),
    ({"messages": [{"role": "assistant", "content": "Hello"}]}, 400, "begins and ends with a message of the user"),
    ({"messages": [*user("a"), {"role": "assistant", "content": "b"}]}, 400, "begins and ends with a message"),
    ({"messages": [{"role": "tool", "content": "b"}]}, 400, "messages.0.role: "),
    (
        {"messages": [*user("a"), {"role": "system", "content": "b"}, *user("c")]},
        400,
        "stands before the first question",
    ),
    ({"messages": user(_image("data:image/png;base64,AAAA"))}, 400, "messages.0.content.0.image_url: Input should be"),
    ({"messages": user(_image({"urk": 1}))}, 400, "messages.0.content.0.image_url.url: Field required"),
    ({"messages": user([{"type": "text", "txt": "?"}])}, 400, "messages.0.content.0.text: Field required"),
    ({"messages": user([{"type": "text", "text": "?", "t": 1}])}, 400, "'messages.0.content.0.t' is not known here"),
    ({"messages": user([{"text": "?"}])}, 400, "messages.0.content.0: Unable to extract tag"),
    ({"messages": user([7])}, 400, "messages.0.content.0: Input should be"),
    ({"messages": user(7)}, 400, "messages.0.content: Input should be"),
    ({"edits": ["a", 7]}, 400, "edits.1: Input should be a valid string"),
    ({"edits": 7}, 400, "edits: Input should be a valid string"),
    ({"str": 7}, 400, "the field 'str' is not known here"),
    ({"messages": user([{"type": "input_audio", "input_audio": {}}])}, 400, "messages.0.content"),
    ({"messages": user("half \ud83d")}, 400, "half a character"),
    ({"messages": user("<image>")}, 400, "holds the image placeholder"),
]


@pytest.mark.parametrize(("body", "status", "says"), REFUSED, ids=[says[:30] for _, _, says in REFUSED])
def test_what_cannot_be_done_is_refused_in_a_line(
    service: Service, body: dict[str, Any], status: int, says: str
) -> None:
    assert says in told(service.post(**body), status)


@pytest.mark.parametrize(
    ("messages", "what"),
    [
        (user("Who is <image>?"), "the prompt"),
        ([*user("Is <image> red?"), {"role": "assistant", "content": "no"}, *user("Who?")], "an earlier question"),
        ([*user("Who?"), {"role": "assistant", "content": "see <image>"}, *user("Who?")], "an earlier answer"),
        ([{"role": "system", "content": "You see <image>."}, *user("Who?")], "the system message"),
    ],
)
def test_a_placeholder_is_told_where_it_stands(service: Service, messages: list[Any], what: str) -> None:
    (said,) = (each["content"] for each in messages if "<image>" in each["content"])
    refused = service.post(messages=messages)
    message = told(refused, 400)
    assert message.startswith(f"{what} holds the image placeholder '<image>'") and repr(said) in message
    assert refused.json()["error"]["code"] is None and refused.json()["error"]["param"] == "messages"


def test_only_what_is_too_long_is_told_so(service: Service) -> None:
    assert service.post(messages=user("x " * 990)).json()["error"]["code"] == "context_length_exceeded"
    assert service.post(messages=user("half \ud83d")).json()["error"]["code"] is None


def test_errors_are_what_the_client_knows(service: Service) -> None:
    with pytest.raises(Exception, match="there is no set 'nobody'") as caught:
        service.say("Who?", f"{MODEL}@nobody")
    assert type(caught.value).__name__ == "NotFoundError"
    with pytest.raises(Exception, match="temperature") as caught:
        service.say("Who?", temperature=9)
    assert type(caught.value).__name__ == "BadRequestError"


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "the body is not JSON"),
        (b"{", "the body is not JSON"),
        (b"\xff\xfe{}", "the body is not JSON"),
        (b"[1]", "the body is no JSON object"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"seed": ' + b"9" * 10_000 + b"}", "digits"),
    ],
)
def test_a_body_that_is_none_is_refused(service: Service, body: bytes, says: str) -> None:
    assert says in told(service.http.post("/chat/completions", content=body), 400)


def test_paths_and_methods_that_are_not_there(service: Service) -> None:
    assert "there is nothing at '/v1/nothing'" in told(service.http.get("/nothing"), 404)
    assert "GET is not to be had at '/v1/chat/completions'" in told(service.http.get("/chat/completions"), 405)


def test_health_and_metrics(service: Service, model: Backbone) -> None:
    base = service.url.removesuffix("/v1")
    assert httpx.get(f"{base}/healthz").json() == {"status": "ok"}
    secret = "a prompt that nobody else is to read"
    service.say(secret)
    text = httpx.get(f"{base}/metrics").text
    assert 'unike_requests_total{route="/v1/chat/completions",status="200"}' in text
    assert "unike_batch_rows_bucket" in text and 'unike_tokens_total{kind="written"}' in text
    assert secret not in text and "tenant-a" not in text
