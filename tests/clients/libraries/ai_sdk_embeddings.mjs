// Vercel's AI SDK with its providers for OpenAI's and Ollama's API: embeddings of several texts, and of one.
import { createOpenAI } from "@ai-sdk/openai";
import { cosineSimilarity, embed, embedMany } from "ai";
import { createOllama } from "ollama-ai-provider-v2";

const { BASE_URL, MODEL } = process.env;
const models = {
  openai: createOpenAI({ baseURL: `${BASE_URL}/v1`, apiKey: "not-needed" }).embeddingModel(MODEL),
  ollama: createOllama({ baseURL: `${BASE_URL}/api` }).embeddingModel(MODEL),
};
const values = ["A cat sits on the mat.", "A kitten rests on a rug.", "Interest rates rose again."];
const result = {};
for (const [name, model] of Object.entries(models)) {
  const { embeddings } = await embedMany({ model, values, maxRetries: 0 });
  const { embedding } = await embed({ model, value: values[0], maxRetries: 0 });
  const [cat, kitten, rates] = embeddings;
  result[name] = {
    length: cat.length,
    same: cosineSimilarity(cat, embedding),
    related: cosineSimilarity(cat, kitten),
    unrelated: cosineSimilarity(cat, rates),
  };
}
console.log(JSON.stringify(result));
