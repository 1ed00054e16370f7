// Version 4 of Vercel's AI SDK with ollama-ai-provider, which newer versions do not accept.
import { generateText, streamText, tool } from "ai";
import { createOllama } from "ollama-ai-provider";
import { z } from "zod";

const { BASE_URL, MODEL, QUESTION: prompt } = process.env;
const model = createOllama({ baseURL: `${BASE_URL}/api` })(MODEL);
const cities = [];
const weather = tool({
  description: "The weather.",
  parameters: z.object({ city: z.string() }),
  execute: async ({ city }) => {
    cities.push(city);
    return `sunny in ${city}`;
  },
});
const whole = await generateText({ model, prompt, tools: { weather }, maxSteps: 3, maxRetries: 0 });
const streamed = streamText({ model, prompt, maxRetries: 0 });
let text = "";
for await (const part of streamed.textStream) text += part;
console.log(JSON.stringify({ texts: [whole.text, text], cities }));
