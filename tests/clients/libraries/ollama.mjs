// Ollama's client: a conversation with a tool, whole and streamed.
import { Ollama } from "ollama";

const { BASE_URL, MODEL: model, QUESTION: content } = process.env;
const client = new Ollama({ host: BASE_URL });
const parameters = { type: "object", properties: { city: { type: "string" } }, required: ["city"] };
const tools = [{ type: "function", function: { name: "weather", description: "The weather.", parameters } }];
const cities = [];
const texts = [];

const send = async (messages, streams) => {
  if (!streams) return (await client.chat({ model, messages, tools })).message;
  const message = { role: "assistant", content: "", tool_calls: [] };
  for await (const part of await client.chat({ model, messages, tools, stream: true })) {
    message.content += part.message.content;
    message.tool_calls.push(...(part.message.tool_calls ?? []));
  }
  return message;
};

for (const streams of [false, true]) {
  const messages = [{ role: "user", content }];
  const answer = await send(messages, streams);
  const results = answer.tool_calls.map(({ function: { name, arguments: { city } } }) => {
    cities.push(city);
    return { role: "tool", tool_name: name, content: `sunny in ${city}` };
  });
  texts.push((await send([...messages, answer, ...results], streams)).content);
}
const models = (await client.list()).models.map((each) => each.name);
console.log(JSON.stringify({ texts, cities, models }));
