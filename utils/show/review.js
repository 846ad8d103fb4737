// The review of problems. `mountReview(root, content)` fills a shadow root with it; nothing leaves the page but the
// table that is saved.

const DECISIONS = { correct: "1", wrong: "2", unsure: "3" }; // and their keys
const REVIEW_COLUMNS = ["image", "class", "problem", "suggestion", "decision", "note", "by"];
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
  const { problems, choices } = content;
  if (problems.length === 0) {
    root.append(element("p", { textContent: content.nothing }));
    return;
  }
  let current = 0; // number of the problem that is shown
  let answers; // of each problem: decision, suggestion and note
  let unsaved = false; // whether a decision is newer than the last table
  const history = []; // number of the problem and its decision before, of each decision

  const place = (index) => `review ${problems[index].key}`;
  const choiceOf = (value) => choices.find((choice) => choice.value === value);

  function restore() {
    answers = problems.map(({ suggestion }, index) => {
      const answer = { suggestion, note: "" };
      try {
        Object.assign(answer, JSON.parse(stored(place(index))));
      } catch {
        // what is damaged is replaced by the next decision
      }
      // Another page may suggest another class; a class may be gone.
      if (answer.decision !== "wrong" || !choiceOf(answer.suggestion)) answer.suggestion = suggestion;
      return answer;
    });
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
      answers[current].note = note.value;
      keep(current);
    },
  });
  const classSelect = element("select", { name: "class", onchange: choose });
  const classField = element("label", { className: "choice" }, ["if wrong, the class is (o) ", classSelect]);
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
    classField,
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
      ["o", "another class, then Enter"],
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

  function meaning(index, decision) {
    const problem = problems[index];
    if (decision !== "wrong" || problem.problem !== "label") return problem.meanings[decision];
    return choiceOf(answers[index].suggestion).meaning;
  }

  function draw() {
    const problem = problems[current];
    const answer = answers[current];
    const reviewed = answers.filter(({ decision }) => decision).length;
    bar.style.width = `${(100 * reviewed) / problems.length}%`;
    progress.textContent = `${reviewed} of ${problems.length} reviewed.`;
    number.textContent = `Problem ${current + 1} of ${problems.length}: ${problem.problem}`;
    question.textContent = problem.question;
    const decided = problems.map((_, index) => index).filter((index) => index !== current && answers[index].decision);
    const ofImage = decided.filter((index) => problems[index].image === problem.image);
    evidence.textContent = [problem.evidence, ...ofImage.map(outcome)].join(" ");
    images.classList.toggle("tall", problem.pictures.every(({ tall }) => tall));
    images.replaceChildren(...problem.pictures.map(picture));
    for (const node of buttons) {
      meanings[node.name].textContent = meaning(current, node.name);
      node.setAttribute("aria-pressed", answer.decision === node.name);
    }
    classField.hidden = problem.problem !== "label";
    const options = choices.filter(({ value }) => value !== problem.class);
    classSelect.replaceChildren(...options.map(({ value, name }) => element("option", { value, textContent: name })));
    classSelect.value = answer.suggestion;
    note.value = answer.note;
  }

  function show(index, text) {
    current = index;
    message.textContent = text;
    draw();
  }

  function keep(index) {
    refused.hidden = store(place(index), JSON.stringify(answers[index]));
  }

  // The next problem without a decision, from the shown one on and then from the first; undefined if there is none.
  function nextOpen() {
    const order = problems.map((_, index) => (current + index) % problems.length);
    return order.find((index) => !answers[index].decision);
  }

  function outcome(index) {
    const { decision } = answers[index];
    return `Problem ${index + 1}: ${decision}, ${meaning(index, decision)}.`;
  }

  function decide(decision) {
    history.push([current, answers[current].decision]);
    answers[current].decision = decision;
    unsaved = true;
    keep(current);
    const next = nextOpen();
    if (next === undefined) show(current, `${outcome(current)} This was the last one: save as CSV (s).`);
    else show(next, outcome(current));
  }

  function choose() {
    answers[current].suggestion = classSelect.value;
    unsaved = true;
    keep(current);
    show(current, answers[current].decision === "wrong" ? outcome(current) : "");
  }

  function undo() {
    if (history.length === 0) {
      show(current, "There is no decision to undo.");
      return;
    }
    const [index, before] = history.pop();
    answers[index].decision = before;
    unsaved = true;
    keep(index);
    show(index, `The decision on problem ${index + 1} is undone.`);
  }

  function step(distance) {
    show(within(current + distance, 0, problems.length - 1), "");
  }

  function save() {
    const rows = [REVIEW_COLUMNS];
    problems.forEach((problem, index) => {
      const { decision, suggestion, note } = answers[index];
      if (!decision) return;
      const proposed = decision === "wrong" ? suggestion : problem.suggestion;
      rows.push([problem.image, problem.class, problem.problem, proposed, decision, note, by.value]);
    });
    const href = URL.createObjectURL(new Blob([csvOf(rows)], { type: "text/csv" }));
    element("a", { href, download: "review.csv" }).click();
    setTimeout(() => URL.revokeObjectURL(href), LINK_LASTS);
    unsaved = false;
    const count = `${rows.length - 1} ${rows.length === 2 ? "decision" : "decisions"}`;
    show(current, `review.csv has ${count}. Next, with the config of this dataset: python -m utils audit --apply review.csv`);
  }

  const keys = {
    ArrowLeft: () => step(-1),
    p: () => step(-1),
    ArrowRight: () => step(1),
    n: () => step(1),
    z: undo,
    o: () => classField.hidden || classSelect.focus(),
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
    if (target === note || target === by || target === classSelect) {
      const chosen = target === classSelect && event.key === "Enter";
      if (chosen) {
        event.preventDefault(); // the list stays closed
        decide("wrong");
      }
      if (chosen || event.key === "Escape") body.focus({ preventScroll: true });
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
    if (!problems.some((_, index) => event.key === place(index))) return;
    restore(); // from another tab
    draw();
  });
  addEventListener("beforeunload", (event) => {
    if (unsaved && !refused.hidden) event.preventDefault(); // the browser asks before the review is lost
  });

  restore();
  refused.hidden = store(REVIEWER, by.value); // which shows at once whether the browser refuses
  show(nextOpen() ?? 0, "");
  focus();
}
