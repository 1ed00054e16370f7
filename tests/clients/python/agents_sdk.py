"""OpenAI's Agents SDK: an agent with a tool, whole and streamed, over the Responses API and chat completions."""

import asyncio
import json
import os

from agents import (
    Agent,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    Runner,
    function_tool,
    set_tracing_disabled,
)
from openai import AsyncOpenAI

cities = []


@function_tool
def weather(city: str) -> str:
    """Return the weather in a city."""
    cities.append(city)
    return f"sunny in {city}"


async def main() -> None:
    set_tracing_disabled(True)
    client = AsyncOpenAI(base_url=f"{os.environ['BASE_URL']}/v1", api_key="not-needed", max_retries=0)
    question = os.environ["QUESTION"]
    texts = []
    for kind in (OpenAIResponsesModel, OpenAIChatCompletionsModel):
        model = kind(model=os.environ["MODEL"], openai_client=client)
        agent = Agent(name="Assistant", instructions="Be brief.", tools=[weather], model=model)
        result = await Runner.run(agent, question)
        texts.append(result.final_output)
        streamed = Runner.run_streamed(agent, question)
        async for _ in streamed.stream_events():
            pass
        texts.append(streamed.final_output)
    print(json.dumps({"texts": texts, "cities": cities}))


asyncio.run(main())
