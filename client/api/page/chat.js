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

const DEEPEST = 6; // lists in lists, and quotations in quotations: what is deeper stays text

function cellsOf(line) {
  const inner = line.trim().replace(/^\|/, "").replace(/\|$/, "");
  return inner.split(/(?<!\\)\|/).map((cell) => cell.trim().replaceAll("\\|", "|"));
}

function beginsTable(line, next) {
  if (!line.includes("|") || !next || !next.includes("-")) return false;
  const rule = cellsOf(next);
  return rule.length === cellsOf(line).length && rule.every((cell) => /^:?-+:?$/.test(cell));
}

function scrollable(label, child) {
  const box = make("div", child);
  box.className = "scroll";
  box.tabIndex = 0;
  box.setAttribute("role", "group");
  box.setAttribute("aria-label", label);
  return box;
}

function table(lines) {
  const columns = cellsOf(lines[0]).length;
  const row = (line, tag) => {
    const cells = cellsOf(line).slice(0, columns);
    return make("tr", ...cells.map((cell) => make(tag, ...inline(cell))));
  };
  const body = make("tbody", ...lines.slice(2).map((line) => row(line, "td")));
  return scrollable("Table", make("table", make("thead", row(lines[0], "th")), body));
}

// The lists that are open, the innermost last; a line may go on with the last item.
class Lists {
  constructor() {
    this.open = [];
  }
  // A new item; the list to put on the page if it is a new outermost one.
  add(indent, mark, children) {
    while (this.open.length && this.open.at(-1).indent > indent) this.open.pop();
    const kind = /\d/.test(mark) ? "OL" : "UL";
    const within = this.open.at(-1);
    let outermost = null;
    let list = within && within.list;
    if (!within || (within.indent < indent && this.open.length < DEEPEST) || list.tagName !== kind) {
      list = make(kind);
      if (within && within.indent === indent) this.open.pop();
      if (this.open.length) this.open.at(-1).item.append(list);
      else outermost = list;
      this.open.push({ indent, list });
    }
    const item = make("li", ...children);
    if (kind === "OL") item.value = parseInt(mark, 10);
    list.append(item);
    this.open.at(-1).item = item;
    return outermost;
  }
}

function markdown(text, depth = 0) {
  const blocks = [];
  const lines = text.split("\n");
  let paragraph = [];
  let lists = new Lists();
  const put = (block) => {
    blocks.push(block);
    lists = new Lists();
  };
  const flush = () => {
    if (paragraph.length) put(make("p", ...inline(paragraph.join("\n"))));
    paragraph = [];
  };
  // The lines from `at` on that `wanted` takes; `at` is then the last of them.
  let at = 0;
  const taken = (wanted) => {
    const from = at;
    while (at + 1 < lines.length && wanted(lines[at + 1])) at++;
    return lines.slice(from, at + 1);
  };
  for (; at < lines.length; at++) {
    const line = lines[at];
    const heading = /^(#{1,6}) +(.*)/.exec(line);
    const item = /^(\s*)([-*+]|\d{1,9}[.)]) +(.*)/.exec(line);
    if (/^\s*```/.test(line)) {
      flush();
      const code = [];
      while (++at < lines.length && !/^\s*```/.test(lines[at])) code.push(lines[at]);
      const block = make("pre", make("code", code.join("\n")));
      block.tabIndex = 0; // it scrolls, for the keyboard as well
      put(block);
    } else if (heading) {
      flush();
      put(make(`h${Math.min(6, heading[1].length + 2)}`, ...inline(heading[2])));
    } else if (beginsTable(line, lines[at + 1])) {
      flush();
      put(table(taken((next) => next.includes("|"))));
    } else if (/^(?:(?:- *){3,}|(?:\* *){3,}|(?:_ *){3,})$/.test(line.trim())) {
      flush();
      put(make("hr"));
    } else if (/^ {0,3}>/.test(line) && depth < DEEPEST) {
      flush();
      const quoted = taken((next) => /^ {0,3}>/.test(next)).map((each) => each.replace(/^ {0,3}> ?/, ""));
      put(make("blockquote", ...markdown(quoted.join("\n"), depth + 1)));
    } else if (item) {
      flush();
      const list = lists.add(item[1].length, item[2], inline(item[3]));
      if (list) blocks.push(list);
    } else if (line.trim() === "") flush();
    else if (/^\s/.test(line) && lists.open.length && !paragraph.length && lines[at - 1].trim()) {
      lists.open.at(-1).item.append("\n", ...inline(line.trim()));
    } else paragraph.push(line);
  }
  flush();
  return blocks;
}

// --- the conversation ---

// A reader at the end of the page stays there, where the form and what is told are; one who has scrolled up is left.
const page = document.scrollingElement;
const atEnd = () => window.innerHeight + page.scrollTop >= page.scrollHeight - 40;

function toEnd() {
  page.scrollTop = page.scrollHeight;
}

function following(change) {
  const follows = atEnd();
  change();
  if (follows) toEnd();
}

const tell = (id, text) => following(() => (element(id).textContent = text));

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
  };
  fill();
  return { article, fill: () => following(fill) };
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
  toEnd();
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
  following(() => element("events").append(make("li", `${event.kind}: ${short(event.peer)}`)));
}

function tellEnd(swarm, finish) {
  const chain = swarm.chain.map((hop) => `${short(hop.peer)} [${hop.blocks.join(":")}]`).join(" → ");
  const speed = `${swarm.tokens_per_second.toFixed(1)} tokens/s`;
  const cut = finish === "length" ? ", cut at its longest" : "";
  const repairs = swarm.repair_count ? `, ${swarm.repair_count} repairs` : "";
  tell("status", `${speed}, ${swarm.precision}${repairs}${cut}; chain: ${chain}`);
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
        if (tokens > 1) tell("status", `${((tokens - 1) / seconds).toFixed(1)} tokens/s`);
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
    toEnd();
    shown.article.setAttribute("aria-busy", "true");
    await answer(reply, shown.fill, controller.signal);
  } catch (error) {
    reply.cut = true;
    if (error.name === "AbortError") tell("status", "stopped");
    else {
      tell("alert", error.message);
      tell("status", shown ? "the answer is not complete" : "");
    }
  } finally {
    if (shown) {
      shown.fill();
      shown.article.setAttribute("aria-busy", "false");
    }
    setRunning(null);
    store();
    element("text").focus({ preventScroll: true });
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
