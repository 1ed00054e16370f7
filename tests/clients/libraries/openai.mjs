// OpenAI's client: a conversation with a tool over chat completions, and one over the Responses API.
import OpenAI from "openai";

const { BASE_URL, MODEL: model, QUESTION: content } = process.env;
const client = new OpenAI({ baseURL: `${BASE_URL}/v1`, apiKey: "not-needed", maxRetries: 0 });
const messages = [{ role: "user", content }];
const parameters = { type: "object", properties: { city: { type: "string" } }, required: ["city"] };
const cities = [];
const weather = ({ city }) => {
  cities.push(city);
  return `sunny in ${city}`;
};
const tools = [{ type: "function", function: { name: "weather", parameters, parse: JSON.parse, function: weather } }];

const whole = await client.chat.completions.runTools({ model, messages, tools }).finalContent();
const streamed = await client.chat.completions.runTools({ model, messages, tools, stream: true }).finalContent();

const flat = [{ type: "function", name: "weather", parameters, strict: false }];
const first = await client.responses.create({ model, input: content, tools: flat });
const call = first.output.find((item) => item.type === "function_call");
const output = weather(JSON.parse(call.arguments));
const input = [{ type: "function_call_output", call_id: call.call_id, output }];
const stream = client.responses.stream({ model, previous_response_id: first.id, input, tools: flat });
const last = await stream.finalResponse();

const models = (await client.models.list()).data.map((each) => each.id);
console.log(JSON.stringify({ texts: [whole, streamed, last.output_text], cities, models }));
