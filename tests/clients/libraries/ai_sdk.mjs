// Vercel's AI SDK with its providers for OpenAI's, Anthropic's and Ollama's API: a tool that the SDK runs.
import { createAnthropic } from "@ai-sdk/anthropic";
import { createOpenAI } from "@ai-sdk/openai";
import { generateText, stepCountIs, streamText, tool } from "ai";
import { createOllama } from "ollama-ai-provider-v2";
import { z } from "zod";

const { BASE_URL, MODEL, QUESTION: prompt } = process.env;
const openai = createOpenAI({ baseURL: `${BASE_URL}/v1`, apiKey: "not-needed" });
const models = {
  chat: openai.chat(MODEL),
  responses: openai.responses(MODEL),
  anthropic: createAnthropic({ baseURL: `${BASE_URL}/v1`, apiKey: "not-needed" })(MODEL),
  ollama: createOllama({ baseURL: `${BASE_URL}/api` })(MODEL),
};
const result = {};
for (const [name, model] of Object.entries(models)) {
  const cities = [];
  const weather = tool({
    description: "The weather.",
    inputSchema: z.object({ city: z.string() }),
    execute: async ({ city }) => {
      cities.push(city);
      return `sunny in ${city}`;
    },
  });
  const request = { model, prompt, tools: { weather }, stopWhen: stepCountIs(3), maxRetries: 0 };
  const whole = await generateText(request);
  const streamed = streamText({ ...request, onError: ({ error }) => { throw error; } });
  const texts = [whole.text, await streamed.text];
  result[name] = { texts, cities, usage: whole.usage.inputTokens };
}
console.log(JSON.stringify(result));
