"use strict";
// The chat page. A model's text becomes nodes of text, never markup: nothing here writes innerHTML.

const STORE = "blockswarm-chat";
const element = (id) => document.getElementById(id);
const messages = [];
let running = null; // the AbortController of the answer under way

// --- Markdown: blocks, then what is within a line ---

function make(tag, ...children) {
  const made = document.createElement(tag);
  made.append(...children);
  return made;
}

function link(label, address) {
  const made = make("a", label);
  made.href = address;
  made.rel = "noopener noreferrer nofollow";
  made.target = "_blank";
  return made;
}

const INLINE = /`([^`\n]+)`|\*\*([^*\n]+)\*\*|\*([^*\s][^*\n]*)\*|\[([^\]\n]{1,500})\]\((https?:\/\/[^\s()<>"]{1,2000})\)/g;

function inline(text) {
  const nodes = [];
  let from = 0;
  for (const found of text.matchAll(INLINE)) {
    nodes.push(text.slice(from, found.index));
    from = found.index + found[0].length;
    if (found[1] !== undefined) nodes.push(make("code", found[1]));
    else if (found[2] !== undefined) nodes.push(make("strong", found[2]));
    else if (found[3] !== undefined) nodes.push(make("em", found[3]));
    else nodes.push(link(found[4], found[5]));
  }
  nodes.push(text.slice(from));
  return nodes;
}

function markdown(text) {
  const blocks = [];
  const lines = text.split("\n");
  let paragraph = [];
  const flush = () => {
    if (paragraph.length) blocks.push(make("p", ...inline(paragraph.join("\n"))));
    paragraph = [];
  };
  for (let at = 0; at < lines.length; at++) {
    const line = lines[at];
    const heading = /^(#{1,6}) +(.*)/.exec(line);
    const item = /^\s*([-*+]|\d{1,9}[.)]) +(.*)/.exec(line);
    if (/^\s*```/.test(line)) {
      flush();
      const code = [];
      while (++at < lines.length && !/^\s*```/.test(lines[at])) code.push(lines[at]);
      blocks.push(make("pre", make("code", code.join("\n"))));
    } else if (heading) {
      flush();
      blocks.push(make(`h${Math.min(6, heading[1].length + 2)}`, ...inline(heading[2])));
    } else if (item) {
      flush();
      const kind = /\d/.test(item[1]) ? "OL" : "UL";
      const last = blocks[blocks.length - 1];
      const list = last && last.tagName === kind ? last : make(kind);
      if (list !== last) blocks.push(list);
      list.append(make("li", ...inline(item[2])));
    } else if (line.trim() === "") flush();
    else paragraph.push(line);
  }
  flush();
  return blocks;
}

// --- the conversation ---

function show(message) {
  const article = make("article", make("h2", message.role === "user" ? "You" : "Model"));
  article.className = message.role;
  const body = make("div");
  const thought = make("p");
  const reasoning = make("details", make("summary", "Reasoning"), thought);
  article.append(reasoning, body);
  element("log").append(article);
  const fill = () => {
    thought.textContent = message.reasoning || "";
    reasoning.hidden = !message.reasoning;
    if (message.role === "user") body.textContent = message.content;
    else body.replaceChildren(...markdown(message.content));
    article.classList.toggle("cut", Boolean(message.cut));
    article.scrollIntoView({ block: "end" });
  };
  fill();
  return { article, fill };
}

function store() {
  try {
    sessionStorage.setItem(STORE, JSON.stringify(messages));
  } catch {
    // the tab's store is full or not there: the conversation then ends with the page
  }
}

function restore() {
  try {
    messages.push(...JSON.parse(sessionStorage.getItem(STORE) || "[]"));
  } catch {
    messages.length = 0;
  }
  messages.forEach(show);
}

// --- the endpoint ---

function headers() {
  const key = element("key").value.trim();
  return key ? { authorization: `Bearer ${key}` } : {};
}

async function failure(response) {
  let message = `status ${response.status}`;
  try {
    message = (await response.json()).error.message;
  } catch {
    // not an answer of the endpoint itself
  }
  const seconds = response.headers.get("retry-after");
  return new Error(seconds ? `${message} (come back in ${seconds} s)` : message);
}

async function loadModels() {
  const response = await fetch("/v1/models", { headers: headers() });
  if (response.status === 401) {
    element("key-row").hidden = false;
    throw new Error("This endpoint needs an API key.");
  }
  if (!response.ok) throw await failure(response);
  const names = (await response.json()).data.map((model) => model.id);
  element("model").replaceChildren(...names.map((name) => new Option(name, name)));
}

async function* eventsOf(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const events = (rest + value).split("\n\n");
    rest = events.pop();
    yield* events;
  }
}

const short = (peer) => (peer ? `..${peer.slice(-6)}` : "this machine");

function tellEvent(event) {
  element("events").append(make("li", `${event.kind}: ${short(event.peer)}`));
}

function tellEnd(swarm, finish) {
  const chain = swarm.chain.map((hop) => `${short(hop.peer)} [${hop.blocks.join(":")}]`).join(" → ");
  const speed = `${swarm.tokens_per_second.toFixed(1)} tokens/s`;
  const cut = finish === "length" ? ", cut at its longest" : "";
  const repairs = swarm.repair_count ? `, ${swarm.repair_count} repairs` : "";
  element("status").textContent = `${speed}, ${swarm.precision}${repairs}${cut}; chain: ${chain}`;
}

async function answer(message, fill, signal) {
  const body = JSON.stringify({
    model: element("model").value,
    stream: true,
    messages: messages.filter((other) => other !== message).map(({ role, content }) => ({ role, content })),
  });
  const sent = { ...headers(), "content-type": "application/json" };
  const response = await fetch("/v1/chat/completions", { method: "POST", headers: sent, body, signal });
  if (!response.ok) throw await failure(response);
  const began = performance.now();
  let tokens = 0;
  let finish = null;
  for await (const event of eventsOf(response)) {
    if (event.startsWith(": ")) tellEvent(JSON.parse(event.slice(2)));
    else if (event === "data: [DONE]") return;
    else if (event.startsWith("data: ")) {
      const data = JSON.parse(event.slice(6));
      if (data.error) throw new Error(data.error.message);
      const choice = data.choices[0];
      const { content = "", reasoning_content: thought = "" } = (choice && choice.delta) || {};
      if (content || thought) {
        message.content += content;
        message.reasoning += thought;
        tokens += 1;
        fill();
        const seconds = (performance.now() - began) / 1000;
        if (tokens > 1) element("status").textContent = `${((tokens - 1) / seconds).toFixed(1)} tokens/s`;
      }
      finish = (choice && choice.finish_reason) || finish;
      if (data.swarm) tellEnd(data.swarm, finish);
    }
  }
  throw new Error("The connection ended before the answer did.");
}

// --- the form ---

function setRunning(controller) {
  running = controller;
  element("send").disabled = controller !== null;
  element("clear").disabled = controller !== null;
  element("stop").disabled = controller === null;
}

async function send() {
  const text = element("text").value;
  if (!text.trim() || running) return;
  element("alert").textContent = "";
  element("events").replaceChildren();
  const controller = new AbortController();
  setRunning(controller);
  let shown = null;
  const reply = { role: "assistant", content: "", reasoning: "" };
  try {
    if (!element("model").value) await loadModels();
    element("text").value = "";
    const question = { role: "user", content: text };
    messages.push(question, reply);
    show(question);
    shown = show(reply);
    element("status").textContent = "waiting for the first token";
    shown.article.setAttribute("aria-busy", "true");
    await answer(reply, shown.fill, controller.signal);
  } catch (error) {
    reply.cut = true;
    if (error.name === "AbortError") element("status").textContent = "stopped";
    else {
      element("alert").textContent = error.message;
      element("status").textContent = shown ? "the answer is not complete" : "";
    }
  } finally {
    if (shown) {
      shown.fill();
      shown.article.setAttribute("aria-busy", "false");
    }
    setRunning(null);
    store();
    element("text").focus();
  }
}

element("form").addEventListener("submit", (event) => {
  event.preventDefault();
  send();
});
element("text").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    send();
  }
});
element("stop").addEventListener("click", () => running && running.abort());
element("clear").addEventListener("click", () => {
  messages.length = 0;
  element("log").replaceChildren();
  element("events").replaceChildren();
  element("status").textContent = "";
  element("alert").textContent = "";
  store();
  element("text").focus();
});
element("key").addEventListener("change", () => {
  loadModels().then(
    () => (element("alert").textContent = ""),
    (error) => (element("alert").textContent = error.message),
  );
});
restore();
loadModels().catch((error) => (element("alert").textContent = error.message));
