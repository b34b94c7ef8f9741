"""
Instructor: typed answers by way of boto3.
"""

from __future__ import annotations

import os
from typing import Any

import boto3
import instructor
from models import REFUSED, UNKNOWN
from pydantic import BaseModel
from steps import KEY, PLAIN_URL, QUESTION, raised, run, step

os.environ["AWS_MAX_ATTEMPTS"] = "1"

# docs: signed
bedrock = boto3.client(
    "bedrock-runtime",
    endpoint_url=f"{PLAIN_URL}/bedrock",
    region_name="us-west-2",
    aws_access_key_id=KEY,
    aws_secret_access_key="anything",
)
client = instructor.from_bedrock(bedrock, mode=instructor.Mode.BEDROCK_TOOLS)
# docs: end


class Weather(BaseModel):
    """The weather of a city."""

    city: str
    days: int


@step
def typed() -> Any:
    # docs: call
    weather = client.chat.completions.create(
        modelId="my-claude",
        messages=[{"role": "user", "content": QUESTION}],
        response_model=Weather,
    )
    # docs: end
    return weather.model_dump()


@step
def errors() -> Any:
    messages = [{"role": "user", "content": QUESTION}]
    return {
        model: raised(
            client.chat.completions.create,
            modelId=model,
            messages=messages,
            response_model=Weather,
            max_retries=1,
        )
        for model in (REFUSED, UNKNOWN)
    }


run()
