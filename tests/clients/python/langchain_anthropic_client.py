"""LangChain with Anthropic's API: a tool call and its result, whole and streamed."""

import json
import os

from langchain_anthropic import ChatAnthropic
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool


@tool
def weather(city: str) -> str:
    """Return the weather in a city."""
    return f"sunny in {city}"


def main() -> None:
    chat = ChatAnthropic(
        model=os.environ["MODEL"], base_url=os.environ["BASE_URL"], api_key="not-needed", max_tokens=100, max_retries=0
    )
    with_tools = chat.bind_tools([weather])
    messages = [HumanMessage(os.environ["QUESTION"])]
    call = with_tools.invoke(messages)
    results = [ToolMessage(weather.invoke(each["args"]), tool_call_id=each["id"]) for each in call.tool_calls]
    history = [*messages, call, *results]
    whole = with_tools.invoke(history)
    chunks = [chunk.text for chunk in with_tools.stream(history)]
    streamed_call = None
    for chunk in with_tools.stream(messages):
        streamed_call = chunk if streamed_call is None else streamed_call + chunk
    cities = [each["args"]["city"] for each in (*call.tool_calls, *streamed_call.tool_calls)]
    texts = [whole.text, "".join(chunks)]
    usage = whole.usage_metadata
    print(json.dumps({"texts": texts, "cities": cities, "usage": [usage["input_tokens"], usage["output_tokens"]]}))


main()
