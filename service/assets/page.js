"use strict";
// Everything that a server or a customer wrote is put on the page as text, never as markup.
const $ = (id) => document.getElementById(id);
const numbers = ["minutes", "epochs", "input_size"];
const limits = ["latency_ms", "stored_bytes", "activation_bytes", "accuracy_drop"];
const ended = ["done", "failed", "cancelled"];
let token = sessionStorage.getItem("token") || "";
let chosen = null; // the job that is shown
let read = 0; // bytes of its log that are shown
let proven = null; // the job whose proof is shown

async function call(method, path, body) {
  const response = await fetch(path, { method, body, headers: { Authorization: `Bearer ${token}` } });
  if (response.ok) return response;
  const said = await response.json().catch(() => ({}));
  if (response.status === 401) signOut();
  throw new Error(said.error || `the server answers ${response.status}`);
}
const get = async (path) => (await call("GET", path)).json();

function send(path, file) { // by XMLHttpRequest, which tells how much was sent
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open("PUT", path);
    request.setRequestHeader("Authorization", `Bearer ${token}`);
    request.upload.onprogress = (event) => { $("sent").hidden = false; $("sent").value = event.loaded / event.total; };
    request.onload = () => {
      $("sent").hidden = true;
      if (request.status < 300) return resolve();
      let said = {};
      try { said = JSON.parse(request.responseText); } catch { /* no JSON */ }
      reject(new Error(said.error || `the server answers ${request.status}`));
    };
    request.onerror = () => reject(new Error("the server cannot be reached"));
    request.send(file);
  });
}

function attempt(action) {
  return async (event) => {
    if (event) event.preventDefault();
    $("error").textContent = "";
    try { await action(); } catch (error) { $("error").textContent = error.message; }
  };
}

function row(table, cells) {
  const line = table.insertRow();
  for (const cell of cells) {
    const place = line.insertCell();
    if (cell instanceof Node) place.append(cell); else place.textContent = cell;
  }
  return line;
}
function button(text, action) {
  const made = document.createElement("button");
  made.textContent = text;
  made.type = "button";
  made.onclick = attempt(action);
  return made;
}
const short = (value) => (value === null || value === undefined ? "" : typeof value === "number" ? `${+value.toPrecision(4)}` : value);

function signOut() {
  sessionStorage.removeItem("token");
  $("login").hidden = false;
  $("main").hidden = true;
}
async function signIn() {
  const { devices } = await get("devices");
  sessionStorage.setItem("token", token);
  $("device").replaceChildren(...devices.map((name) => new Option(name)));
  $("login").hidden = true;
  $("main").hidden = false;
  await refresh();
}

function request() {
  const job = { name: $("name").value, flip: $("flip").checked, precision: $("precision").value, limits: {} };
  job.device = $("own").value ? `own:${$("own").value}` : $("device").value;
  for (const name of numbers) if ($(name).value) job[name] = Number($(name).value);
  for (const name of limits) if ($(name).value) job.limits[name] = Number($(name).value);
  if ($("path").value) job.path = $("path").value;
  if ($("model").value) Object.assign(job, { model: $("model").value, weights: $("weights").value });
  return job;
}

async function submit() {
  const job = request();
  const [images, weights] = [$("images").files[0], $("weights_file").files[0]];
  if (!job.path && !images) throw new Error("choose a zip with images, or name a folder on the server");
  $("submit").disabled = true;
  let made = null;
  try {
    made = await (await call("POST", "jobs", JSON.stringify(job))).json();
    if (job.weights === "uploaded") await send(`jobs/${made.id}/weights`, weights);
    if (!job.path) await send(`jobs/${made.id}/images`, images);
    show(made.id);
  } catch (error) {
    if (made) await call("DELETE", `jobs/${made.id}`).catch(() => {});
    throw error;
  } finally {
    $("submit").disabled = false;
  }
  await refresh();
}

function show(id) {
  if (chosen !== id) { $("log").textContent = ""; read = 0; proven = null; $("proof").hidden = true; $("report").hidden = true; }
  chosen = id;
  $("job").hidden = id === null;
}

let refreshing = null; // one at a time, or lines of the log would come twice
function refresh() {
  refreshing ||= refreshAll().finally(() => { refreshing = null; });
  return refreshing;
}
async function refreshAll() {
  const { jobs } = await get("jobs");
  $("jobs").replaceChildren();
  for (const job of jobs) {
    const open = button("show", async () => { show(job.id); await refresh(); });
    row($("jobs"), [job.name || job.id, job.state, job.stage, open]).dataset.job = job.id;
  }
  if (chosen) await refreshJob(chosen);
}

async function refreshJob(id) {
  const job = await get(`jobs/${id}`);
  const log = await call("GET", `jobs/${id}/log?start=${read}`);
  const text = await log.text();
  if (id !== chosen) return;
  $("title").textContent = job.name || job.id;
  $("state").textContent = job.state;
  $("message").textContent = job.message;
  $("cancel").disabled = ended.includes(job.state);
  $("resume").disabled = !["failed", "cancelled"].includes(job.state);
  $("delete_images").disabled = !ended.includes(job.state) || Boolean(job.request.path);
  $("measure").hidden = job.state !== "waiting";
  $("stages").replaceChildren();
  for (const stage of job.stages) row($("stages"), [stage.name, stage.state, stage.seconds.toFixed(0), stage.note]);
  read = Number(log.headers.get("X-Next"));
  $("log").textContent += text;
  $("show").onclick = () => { $("report").src = job.report; $("report").hidden = false; };
  if (job.state === "done" && proven !== id) await showProof(id);
}

async function showProof(id) {
  const proof = await get(`jobs/${id}/proof`);
  const { files } = await get(`jobs/${id}/files`);
  if (id !== chosen) return;
  for (const id of ["networks", "limits", "answers", "files"]) $(id).replaceChildren();
  for (const own of proof.networks) {
    const accuracy = [(100 * own.accuracy).toFixed(1), (100 * own.standard_error).toFixed(1)];
    row($("networks"), [own.network, own.precision, ...accuracy, own.bytes, short(own.latency_ms)]);
  }
  for (const own of proof.limits) {
    const error = own.standard_error === undefined ? "" : ` (standard error ${short(own.standard_error)})`;
    const kept = own.kept === null ? "cannot be distinguished" : own.kept ? "yes" : "no";
    row($("limits"), [own.name, own.limit, short(own.value) + error, own.known_by, kept]);
  }
  for (const [question, lines] of Object.entries(proof.answers)) {
    const heading = document.createElement("h3");
    heading.textContent = question;
    const text = document.createElement("p");
    text.textContent = lines.join(" ");
    $("answers").append(heading, text);
  }
  for (const file of files) {
    const item = document.createElement("li");
    item.append(button(file.path, () => download(`files/${file.path}`)), ` ${file.bytes} bytes`);
    $("files").append(item);
  }
  $("show").disabled = !files.some((file) => file.path === "searched/report.html");
  $("proof").hidden = false;
  proven = id;
}

async function download(path) {
  const content = await (await call("GET", `jobs/${chosen}/${path}`)).blob();
  const link = document.createElement("a");
  link.href = URL.createObjectURL(content);
  link.download = path.split("/").pop() + (path.startsWith("archive/") ? ".zip" : "");
  link.click();
  URL.revokeObjectURL(link.href);
}

$("login").onsubmit = attempt(async () => { token = $("token").value; await signIn(); });
$("form").onsubmit = attempt(submit);
$("cancel").onclick = attempt(async () => { await call("POST", `jobs/${chosen}/cancel`); await refresh(); });
$("resume").onclick = attempt(async () => { await call("POST", `jobs/${chosen}/resume`); await refresh(); });
$("delete").onclick = attempt(async () => { await call("DELETE", `jobs/${chosen}`); show(null); await refresh(); });
$("delete_images").onclick = attempt(() => call("DELETE", `jobs/${chosen}/images`));
$("get_measure").onclick = attempt(() => download("archive/measure"));
$("measure").onsubmit = attempt(async () => {
  if (!$("measurements").files[0]) throw new Error("choose the CSV file that was filled in");
  await send(`jobs/${chosen}/measurements`, $("measurements").files[0]);
  await refresh();
});

if (location.hash.startsWith("#token=")) {
  token = decodeURIComponent(location.hash.slice("#token=".length));
  history.replaceState(null, "", location.pathname);
}
if (token) attempt(signIn)(); else signOut();
setInterval(() => { if (!$("main").hidden && !document.hidden) refresh().catch(() => {}); }, 1500);
