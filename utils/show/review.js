// The review of problems. `mountReview(root, content)` fills a shadow root with it; nothing leaves the page but the
// table that is saved.

const DECISIONS = { correct: "1", wrong: "2", unsure: "3" }; // and their keys
const REVIEW_COLUMNS = ["image", "problem", "suggestion", "decision", "note", "by"];
const REVIEWER = "reviewer"; // where the browser keeps the name, for all reviews
const LINK_LASTS = 60000; // milliseconds in which a browser has to begin a download

// The text of a CSV file (RFC 4180).
function csvOf(rows) {
  const quoted = (text) => (/[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);
  return rows.map((row) => `${row.map(quoted).join(",")}\r\n`).join("");
}

// What the browser keeps under a name. A browser may refuse, at private windows or when it is full: null or false.
function stored(name) {
  try {
    return localStorage.getItem(name);
  } catch {
    return null;
  }
}

function store(name, text) {
  try {
    localStorage.setItem(name, text);
    return true;
  } catch {
    return false;
  }
}

function mountReview(root, content) {
  const { problems } = content;
  if (problems.length === 0) {
    root.append(element("p", { textContent: content.nothing }));
    return;
  }
  const place = `review ${root.host.dataset.view}`; // the digest of the content
  let current = 0; // number of the problem that is shown
  let state; // decisions and notes by number of the problem; history: [number, its decision before] of each decision
  let unsaved = false; // whether a decision is newer than the last table

  function restore() {
    state = { decisions: {}, notes: {}, history: [] };
    try {
      Object.assign(state, JSON.parse(stored(place)));
    } catch {
      // what is damaged is replaced by the next decision
    }
  }

  // The parts of the page.
  const bar = element("div", { className: "value" });
  const progress = element("span", { className: "count" });
  const message = element("span", { className: "message" });
  const status = element("p", { className: "status", attributes: { role: "status", "aria-live": "polite" } }, [
    progress,
    " ",
    message,
  ]);
  const refused = element("p", {
    className: "refused",
    hidden: true,
    textContent: "This browser does not keep the review: save it as CSV before you close the page.",
    attributes: { role: "alert" },
  });
  const number = element("p", { className: "number" });
  const question = element("h2");
  const evidence = element("p", { className: "evidence" });
  const words = element("div", { className: "words", attributes: { "aria-live": "polite" } }, [number, question, evidence]);
  const images = element("div", { className: "pictures" });
  const button = (name, textContent, onclick) => element("button", { type: "button", name, textContent, onclick });
  const meanings = {};
  const buttons = Object.entries(DECISIONS).map(([decision, key]) => {
    meanings[decision] = element("span");
    const children = [element("strong", { textContent: `${decision} (${key})` }), " ", meanings[decision]];
    return element("button", { type: "button", name: decision, onclick: () => decide(decision) }, children);
  });
  const note = element("textarea", {
    name: "note",
    rows: 2,
    oninput: () => {
      state.notes[current] = note.value;
      keep();
    },
  });
  const by = element("input", {
    name: "by",
    value: stored(REVIEWER) ?? "",
    autocomplete: "name",
    oninput: () => store(REVIEWER, by.value),
  });
  const decisions = element("div", { className: "decisions", attributes: { role: "group", "aria-label": "decision" } }, buttons);
  const steps = element("div", { className: "controls" }, [
    button("previous", "\u2190 previous (p)", () => step(-1)),
    button("next", "next (n) \u2192", () => step(1)),
    button("undo", "undo (z)", undo),
  ]);
  const table = element("div", { className: "controls" }, [
    element("label", {}, ["your name ", by]),
    button("save", "save as CSV (s)", save),
  ]);
  const answer = element("div", { className: "answer" }, [
    decisions,
    element("label", { className: "note" }, ["note, saved with the decision", note]),
    steps,
    table,
  ]);
  const help = element("p", { className: "help" }, [
    "Keys: ",
    ...[
      ["1 c", "correct"],
      ["2 w", "wrong"],
      ["3 u", "unsure"],
      ["\u2190 \u2192", "previous, next"],
      ["z", "undo"],
      ["s", "save"],
      ["Esc", "leave a field"],
    ].flatMap(([key, meaning]) => [element("kbd", { textContent: key }), ` ${meaning}  `]),
  ]);
  const body = element(
    "div",
    { className: "review", tabIndex: -1, attributes: { role: "group", "aria-label": "review" } },
    [
      element("div", { className: "scale", attributes: { "aria-hidden": "true" } }, [bar]),
      status,
      refused,
      element("div", { className: "card" }, [words, images, answer]),
      help,
    ],
  );
  root.append(body);

  const picture = ({ caption, source, cause }) =>
    element("figure", {}, [
      element("figcaption", { textContent: caption }),
      source
        ? element("img", { src: source, alt: "", draggable: false })
        : element("p", { className: "missing", textContent: `No picture: ${cause}` }),
    ]);

  function draw() {
    const problem = problems[current];
    const reviewed = Object.keys(state.decisions).length;
    bar.style.width = `${(100 * reviewed) / problems.length}%`;
    progress.textContent = `${reviewed} of ${problems.length} reviewed.`;
    number.textContent = `Problem ${current + 1} of ${problems.length}: ${problem.problem}`;
    question.textContent = problem.question;
    evidence.textContent = problem.evidence;
    images.classList.toggle("tall", problem.pictures.every(({ tall }) => tall));
    images.replaceChildren(...problem.pictures.map(picture));
    for (const node of buttons) {
      meanings[node.name].textContent = problem.meanings[node.name];
      node.setAttribute("aria-pressed", state.decisions[current] === node.name);
    }
    note.value = state.notes[current] ?? "";
  }

  function show(index, text) {
    current = index;
    message.textContent = text;
    draw();
  }

  function keep() {
    refused.hidden = store(place, JSON.stringify(state));
  }

  // The next problem without a decision, from the shown one on and then from the first; undefined if there is none.
  function nextOpen() {
    const order = problems.map((_, index) => (current + index) % problems.length);
    return order.find((index) => !(index in state.decisions));
  }

  function decide(decision) {
    state.history.push([current, state.decisions[current]]);
    state.decisions[current] = decision;
    unsaved = true;
    keep();
    const text = `Problem ${current + 1}: ${decision}, ${problems[current].meanings[decision]}.`;
    const next = nextOpen();
    if (next === undefined) show(current, `${text} This was the last one: save as CSV (s).`);
    else show(next, text);
  }

  function undo() {
    if (state.history.length === 0) {
      show(current, "There is no decision to undo.");
      return;
    }
    const [index, before] = state.history.pop();
    if (before) state.decisions[index] = before;
    else delete state.decisions[index];
    unsaved = true;
    keep();
    show(index, `The decision on problem ${index + 1} is undone.`);
  }

  function step(distance) {
    show(within(current + distance, 0, problems.length - 1), "");
  }

  function save() {
    const rows = [REVIEW_COLUMNS];
    problems.forEach((problem, index) => {
      const decision = state.decisions[index];
      if (!decision) return;
      rows.push([problem.image, problem.problem, problem.suggestion, decision, state.notes[index] ?? "", by.value]);
    });
    const href = URL.createObjectURL(new Blob([csvOf(rows)], { type: "text/csv" }));
    element("a", { href, download: "review.csv" }).click();
    setTimeout(() => URL.revokeObjectURL(href), LINK_LASTS);
    unsaved = false;
    const count = `${rows.length - 1} ${rows.length === 2 ? "decision" : "decisions"}`;
    show(current, `review.csv has ${count}. Next: python -m utils audit --apply review.csv`);
  }

  const keys = {
    ArrowLeft: () => step(-1),
    p: () => step(-1),
    ArrowRight: () => step(1),
    n: () => step(1),
    z: undo,
    s: save,
  };
  for (const [decision, key] of Object.entries(DECISIONS)) {
    keys[key] = () => decide(decision);
    keys[decision[0]] = keys[key];
  }
  const focus = () => {
    if (document.activeElement === document.body) body.focus({ preventScroll: true }); // so that keys work at once
  };
  body.addEventListener("pointerenter", focus);
  body.addEventListener("keydown", (event) => {
    const target = event.composedPath()[0];
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (target === note || target === by) {
      if (event.key === "Escape") body.focus({ preventScroll: true });
      event.stopPropagation(); // no key of a page around it
      return;
    }
    const key = event.key.length === 1 ? event.key.toLowerCase() : event.key; // also with caps lock
    if (!keys[key]) return;
    event.preventDefault();
    event.stopPropagation();
    if (!event.repeat) keys[key](); // a key that is held decides once
  });
  addEventListener("storage", (event) => {
    if (event.key !== place) return;
    restore(); // the same page in another tab
    draw();
  });
  addEventListener("beforeunload", (event) => {
    if (unsaved && !refused.hidden) event.preventDefault(); // the browser asks before the review is lost
  });

  restore();
  keep(); // which shows at once whether the browser refuses
  show(nextOpen() ?? 0, "");
  focus();
}
