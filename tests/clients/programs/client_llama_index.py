"""
LlamaIndex: its LLM for Converse. It takes only model names that it knows from Bedrock.
"""

from __future__ import annotations

from typing import Any

from llama_index.core.llms import ChatMessage
from llama_index.core.tools import FunctionTool

# docs: signed
from llama_index.llms.bedrock_converse import BedrockConverse

# docs: end
from models import BROKEN, REFUSED, THROTTLED
from pydantic import BaseModel
from steps import KEY, PLAIN_URL, QUESTION, described, raised, run, step

MODEL = "us.anthropic.claude-sonnet-4-5-20250929-v1:0"
MESSAGES = [ChatMessage(role="user", content=QUESTION)]
ARN = "arn:aws:bedrock:us-west-2:123456789012:application-inference-profile/a1b2c3d4e5f6"


def llm_of(model: str, **options: Any) -> BedrockConverse:
    told: dict[str, Any] = {
        "aws_access_key_id": KEY,
        "aws_secret_access_key": "anything",
        "endpoint_url": f"{PLAIN_URL}/bedrock",
        "region_name": "us-west-2",
        "max_retries": 1,
    }
    return BedrockConverse(model=model, **{**told, **options})


# docs: signed
llm = BedrockConverse(
    model="us.anthropic.claude-sonnet-4-5-20250929-v1:0",
    endpoint_url=f"{PLAIN_URL}/bedrock",
    aws_access_key_id=KEY,
    aws_secret_access_key="anything",
    region_name="us-west-2",
)
# docs: end


class Weather(BaseModel):
    """The weather of a city."""

    city: str
    days: int


def get_weather(city: str, days: int) -> str:
    """Tell the weather."""
    return f"It rains in {city} for {days} days."


@step
def converse() -> Any:
    # docs: call
    answer = llm.chat([ChatMessage(role="user", content=QUESTION)])
    text = answer.message.content
    # docs: end
    return {"text": text, "complete": llm.complete(QUESTION).text}


@step
def stream() -> Any:
    return [piece.delta for piece in llm.stream_chat(MESSAGES)]


@step
async def asynchronous() -> Any:
    answer = await llm.achat(MESSAGES)
    stream = await llm.astream_chat(MESSAGES)
    return {"text": answer.message.content, "pieces": [piece.delta async for piece in stream]}


@step
def profile() -> Any:
    """An ARN with its slash in it, as the name of the model."""
    return llm_of(MODEL, application_inference_profile_arn=ARN).chat(MESSAGES).message.content


@step
def tools() -> Any:
    tool = FunctionTool.from_defaults(get_weather)
    answer = llm.chat_with_tools([tool], user_msg="Please call get_weather")
    (call,) = llm.get_tool_calls_from_response(answer)
    return {"name": call.tool_name, "args": call.tool_kwargs}


@step
def structured() -> Any:
    return llm.as_structured_llm(Weather).chat(MESSAGES).raw.model_dump()


@step
def alias() -> Any:
    return raised(llm_of("my-claude").chat, MESSAGES)


@step
def errors() -> Any:
    found = {model: raised(llm_of(model).chat, MESSAGES) for model in (REFUSED, THROTTLED)}
    found["wrong key"] = raised(llm_of(MODEL, aws_access_key_id="sk-wrong").chat, MESSAGES)
    return found


@step
def broken_stream() -> Any:
    pieces = []
    try:
        for piece in llm_of(BROKEN).stream_chat(MESSAGES):
            pieces.append(piece.delta)
    except Exception as error:
        return {"pieces": pieces, "error": described(error)}


run()
