"""
Pydantic AI: agents on Bedrock's Converse, with tools and typed output.
"""

from __future__ import annotations

import os
from typing import Any

from models import BROKEN, CLAUDE, EMBEDDINGS, REFUSED, THROTTLED, UNKNOWN
from pydantic import BaseModel
from steps import KEY, PLAIN_URL, QUESTION, URL, described, raised, run, step

os.environ["AWS_MAX_ATTEMPTS"] = "1"

# docs: bearer
from pydantic_ai import Agent
from pydantic_ai.models.bedrock import BedrockConverseModel
from pydantic_ai.providers.bedrock import BedrockProvider

# docs: end

# docs: bearer
provider = BedrockProvider(base_url=f"{URL}/bedrock", api_key=KEY, region_name="us-west-2")
agent = Agent(BedrockConverseModel("my-claude", provider=provider))
# docs: end


# docs: signed
signed_provider = BedrockProvider(
    base_url=f"{PLAIN_URL}/bedrock",
    aws_access_key_id=KEY,
    aws_secret_access_key="anything",
    region_name="us-west-2",
)
# docs: end
stranger = BedrockProvider(
    base_url=f"{PLAIN_URL}/bedrock",
    aws_access_key_id="sk-wrong",
    aws_secret_access_key="anything",
    region_name="us-west-2",
)


def signed(model: str, provider: Any = signed_provider, **options: Any) -> Agent[None, Any]:
    return Agent(BedrockConverseModel(model, provider=provider), **options)


ID = "us.anthropic.claude-sonnet-4-5-20250929-v1:0"


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
    answer = agent.run_sync(QUESTION)
    text = answer.output
    # docs: end
    return {"text": text, "output": answer.usage.output_tokens}


@step
async def stream() -> Any:
    async with agent.run_stream(QUESTION) as answer:
        pieces = [piece async for piece in answer.stream_text(delta=True, debounce_by=None)]
    return {"pieces": pieces, "output": answer.usage.output_tokens}


@step
def tools() -> Any:
    answer = signed(CLAUDE, tools=[get_weather]).run_sync("Please call get_weather")
    parts = [part for message in answer.all_messages() for part in message.parts]
    (call,) = (part for part in parts if part.part_kind == "tool-call")
    (result,) = (part for part in parts if part.part_kind == "tool-return")
    return {"args": call.args_as_dict(), "result": result.content, "output": answer.output}


@step
async def structured() -> Any:
    """By Bedrock's id, from which it knows what the model can do."""
    whole = await signed(ID, output_type=Weather).run(QUESTION)
    async with signed(ID, output_type=Weather).run_stream(QUESTION) as answer:
        streamed = await answer.get_output()
    return [whole.output.model_dump(), streamed.model_dump()]


@step
async def embeddings() -> Any:
    from pydantic_ai import Embedder
    from pydantic_ai.embeddings.bedrock import BedrockEmbeddingModel

    model = BedrockEmbeddingModel("amazon.titan-embed-text-v2:0", provider=provider)
    found = await Embedder(model).embed_documents(["one", "two"])
    return [len(vector) for vector in found.embeddings]


@step
async def embeddings_by_alias() -> Any:
    from pydantic_ai.embeddings.bedrock import BedrockEmbeddingModel

    return raised(BedrockEmbeddingModel, EMBEDDINGS, provider=provider)


@step
def errors() -> Any:
    found = {
        model: raised(signed(model).run_sync, QUESTION) for model in (REFUSED, THROTTLED, UNKNOWN)
    }
    found["wrong key"] = raised(signed(CLAUDE, stranger).run_sync, QUESTION)
    return found


@step
async def broken_stream() -> Any:
    pieces = []
    try:
        async with signed(BROKEN).run_stream(QUESTION) as answer:
            async for piece in answer.stream_text(delta=True, debounce_by=None):
                pieces.append(piece)
    except Exception as error:
        return {"pieces": pieces, "error": described(error)}


run()
