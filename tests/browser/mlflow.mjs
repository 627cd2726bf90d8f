// What a reviewer sees in MLflow: the runs by score, a description, a chart, the pictures, the tables, the report, the version.
//
//   node mlflow.mjs '{"base": "http://127.0.0.1:5000", "experiment": "1", "run": "...", "training": "...", "set": "testing",
//                     "model": "small", "chromium": "/usr/bin/chromium", "output": "screenshots"}'
//
// Prints what it found as one line of JSON; a screenshot of each page goes to the folder "output". No request leaves loopback.
import { mkdirSync } from "node:fs";
import { join } from "node:path";
import { chromium } from "playwright-core";

const asked = JSON.parse(process.argv[2]);
const SECONDS = 1000;
const PATIENCE = 120 * SECONDS; // MLflow's pages take long on a busy machine
mkdirSync(asked.output, { recursive: true });

const browser = await chromium.launch({
  executablePath: asked.chromium,
  headless: true,
  args: [
    "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-component-update",
    "--disable-sync", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
  ],
});
const found = { left_loopback: [], errors: [] };
const page = await browser.newPage({ viewport: { width: 1600, height: 1000 } });
page.setDefaultTimeout(PATIENCE);
page.on("pageerror", (error) => found.errors.push(error.message));
await page.route(/.*/, (route) => {
  const url = new URL(route.request().url());
  if (url.hostname === "127.0.0.1" || url.protocol === "blob:" || url.protocol === "data:") return route.continue();
  found.left_loopback.push(url.hostname);
  return route.abort();
});
// What a person's first visit asks once: models rather than language models, and no assistant.
await page.addInitScript(() => {
  try {
    localStorage.setItem("mlflow.workflowType_v1", '"machine_learning"');
    localStorage.setItem("mlflow.assistant.fab.autoOpenedOnFirstLoad_v1", "true");
    localStorage.setItem("mlflow.assistant.panelOpen_v1", "false");
  } catch {} // a report in its sandbox has no storage
});

const runPage = `${asked.base}/#/experiments/${asked.experiment}/runs`;
async function shot(name) {
  await page.waitForTimeout(1.5 * SECONDS); // fonts and animations
  await page.screenshot({ path: join(asked.output, `${name}.png`) });
}
async function text(locator) {
  return (await locator.innerText()).replaceAll("\u00a0", "");
}

async function runs() {
  await page.goto(runPage);
  await page.getByRole("button", { name: /Views/ }).click();
  await page.getByText("Scores, best first").click();
  await page.getByText(`${asked.set}/dice`, { exact: true }).first().waitFor();
  const cell = page.getByRole("gridcell").getByRole("link", { name: asked.name, exact: true }).first();
  await cell.waitFor();
  found.list = await text(page.locator("#root"));
  await shot("1-runs");
  await cell.click();
  await page.getByText("Show more").click();
  found.experiment = await text(page.locator("main, #root").first());
  await shot("2-experiment");
}

async function chart() {
  await page.goto(`${runPage}/${asked.training}/model-metrics`);
  await page.locator(".js-plotly-plot").first().waitFor();
  found.charts = await page.locator(".js-plotly-plot").count();
  await shot("3-charts");
}

async function scores() {
  await page.goto(`${runPage}/${asked.run}`);
  await page.getByText("Show more").click();
  found.scores = await text(page.locator("main, #root").first());
  await shot("4-scores");
}

async function pictures() {
  await page.goto(`${runPage}/${asked.run}/model-metrics`);
  await page.getByPlaceholder("Search metric charts").fill("overlay");
  const slider = page.getByRole("slider").first();
  await slider.waitFor();
  const picture = page.locator("img[src^='blob:'], img[src*='artifact']").first();
  await picture.waitFor();
  found.picture = await picture.evaluate((image) => [image.naturalWidth, image.naturalHeight]);
  await shot("5-overlay-worst");
  const worst = await picture.screenshot();
  found.steps = Number(await slider.getAttribute("aria-valuemax")) + 1;
  await slider.focus();
  for (let step = 1; step < found.steps; step += 1) {
    await page.keyboard.press("ArrowRight");
    await page.locator(`[role=slider][aria-valuenow='${step}']`).waitFor();
  }
  await shot("6-overlay-best");
  found.changed = !worst.equals(await page.locator("img[src^='blob:'], img[src*='artifact']").first().screenshot());
}

async function artifacts() {
  await page.goto(`${runPage}/${asked.run}/artifacts`);
  await page.getByText("cases.json", { exact: true }).click();
  await page.getByText("View as table").waitFor();
  found.cases = await text(page.locator("table, [role=table], [role=grid]").first());
  await shot("7-cases");
  await page.getByText("report.html", { exact: true }).click();
  await page.locator("iframe").waitFor();
  await page.waitForTimeout(2 * SECONDS);
  for (const frame of page.frames()) {
    if (frame.url().startsWith("blob:")) found.report = (await frame.locator("body").innerText()).slice(0, 2000);
  }
  await shot("8-report");
}

async function version() {
  await page.goto(`${asked.base}/#/models/${asked.model}/versions/1`);
  await page.getByText("medseg.model_sha256").waitFor();
  found.version = await text(page.locator("main, #root").first());
  await shot("9-version");
}

for (const look of [runs, chart, scores, pictures, artifacts, version]) {
  try {
    await look();
  } catch (error) {
    found.errors.push(`${look.name}: ${error.message.split("\n")[0]}`);
    await shot(`failed-${look.name}`);
  }
}
await browser.close();
process.stdout.write(`${JSON.stringify(found)}\n`);
