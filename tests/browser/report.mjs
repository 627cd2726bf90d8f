// Opens a report from disk with the network off and uses it as a reader would. Usage: node report.mjs REPORT.html ARTIFACTS/
// Prints one JSON object per check; exits with 1 at the first that fails. Screenshots stay in ARTIFACTS.
import assert from "node:assert/strict";
import { mkdirSync, statSync } from "node:fs";
import { join, resolve } from "node:path";
import { pathToFileURL } from "node:url";
import { chromium } from "playwright-core";

const [, , report, artifacts] = process.argv;
const address = pathToFileURL(resolve(report)).href;
mkdirSync(artifacts, { recursive: true });
const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM,
  args: [
    "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-component-update",
    "--disable-sync",
  ],
});
const troubles = [];
const requests = [];
const told = (check, found = {}) => console.log(JSON.stringify({ check, ...found }));
const shot = (page, name, whole = true) => page.screenshot({ path: join(artifacts, `${name}.png`), fullPage: whole });

async function opened(options = {}) {
  const context = await browser.newContext({ viewport: { width: 1280, height: 900 }, colorScheme: "light", ...options });
  await context.setOffline(true);
  const page = await context.newPage();
  page.setDefaultTimeout(120_000);  // a busy machine draws slowly
  page.on("console", (message) => troubles.push(`${message.type()}: ${message.text()}`));
  page.on("pageerror", (error) => troubles.push(`error: ${error.message}`));
  page.on("request", (request) => requests.push(request.url()));
  await page.goto(address);
  return page;
}

async function loadAll(page) {
  for (const place of await page.locator("[data-case]").all()) {
    await place.scrollIntoViewIfNeeded();
    await page.waitForFunction((element) => element.dataset.loaded === "true", await place.elementHandle());
  }
}

try {
  const page = await opened();
  await loadAll(page);
  const planes = page.locator("[data-case='0'] canvas");
  const canvas = planes.first();
  const drawn = (one = canvas) => one.evaluate((element) => element.toDataURL());
  const where = () => page.locator("[data-case='0'] figcaption span").first().textContent();
  const changes = async (what, act, one = canvas) => {
    const before = await drawn(one);
    await act();
    await page.waitForTimeout(50);
    assert.notEqual(await drawn(one), before, `${what} changes what is drawn`);
    told(what);
  };

  await canvas.scrollIntoViewIfNeeded();
  await canvas.hover();
  const start = await where();
  await changes("the wheel scrolls a case", () => page.mouse.wheel(0, 120));
  assert.notEqual(await where(), start);
  await canvas.focus();
  await changes("an arrow key scrolls it back", () => page.keyboard.press("ArrowDown"));
  assert.equal(await where(), start);
  await changes("Home goes to the first slice", () => page.keyboard.press("End"));
  await page.locator("[data-case='0'] input").first().focus();
  await changes("the slider scrolls", () => page.keyboard.press("Home"));
  await page.locator("[data-case='0'] input").first().fill(String(Number(/(\d+)\//.exec(start)[1]) - 1));
  assert.equal(await where(), start);
  await canvas.focus();
  for (const key of ["t", "p", "s", "x", "f"]) {
    await changes(`key ${key} takes a layer away`, () => page.keyboard.press(key));
    await changes(`key ${key} brings it back`, () => page.keyboard.press(key));
  }
  const errors = page.getByRole("button", { name: "Errors" });
  await changes("the button shows errors", () => errors.click());
  assert.equal(await errors.getAttribute("aria-pressed"), "true");
  await shot(page, "errors", false);
  await errors.click();
  const unsure = page.getByRole("button", { name: "Uncertainty" });
  if (await unsure.count()) {
    await changes("the button shows the entropy", () => unsure.click());
    await shot(page, "uncertainty", false);
    await unsure.click();
  }
  await canvas.focus();
  await changes("+ enlarges", () => page.keyboard.press("+"));
  await changes("- makes smaller", () => page.keyboard.press("-"));
  if (await planes.count() > 1) {
    const box = await canvas.boundingBox();
    await changes("a click moves the other planes", () => page.mouse.click(box.x + box.width * 0.2, box.y + box.height * 0.2),
      planes.nth(1));
  }

  const stops = await page.evaluate(() => document.body.focus()) ?? [];
  await page.keyboard.press("Tab");
  for (let i = 0; i < 200; i++) {
    const tag = await page.evaluate(() => document.activeElement.tagName);
    stops.push(tag);
    if (tag === "CANVAS") break;
    await page.keyboard.press("Tab");
  }
  assert.ok(stops.includes("CANVAS"), "the slices are reached with Tab alone");
  told("the slices are reached with Tab alone", { stops: stops.length });

  await page.locator("#rows summary").click();
  const head = page.locator("#rows th[scope=col]").filter({ hasText: /^dice$/ }).getByRole("button");
  await head.click();
  await head.click();
  const column = await page.locator("#rows th[scope=col]").allTextContents().then((names) => names.indexOf("dice"));
  const values = await page.locator(`#rows tbody tr > :nth-child(${column + 1})`).allTextContents();
  const numbers = values.filter((text) => text !== "").map(Number);
  assert.deepEqual(numbers, [...numbers].sort((a, b) => b - a));
  assert.ok(values.slice(numbers.length).every((text) => text === ""), "what is missing comes last");
  told("the table sorts", { rows: values.length });
  await page.locator("#rows summary").click();

  const paper = () => page.evaluate(() => getComputedStyle(document.body).backgroundColor);
  const light = await paper();
  await page.evaluate(() => scrollTo(0, 0));
  await shot(page, "light");
  await page.locator("#theme").click();
  assert.notEqual(await paper(), light);
  told("the button switches to dark");

  const dark = await opened({ colorScheme: "dark" });
  await loadAll(dark);
  assert.notEqual(await dark.evaluate(() => getComputedStyle(document.body).backgroundColor), light);
  await dark.evaluate(() => scrollTo(0, 0));
  await shot(dark, "dark");
  told("it follows the system to dark");

  const phone = await opened({ viewport: { width: 390, height: 844 } });
  await loadAll(phone);
  assert.equal(await phone.evaluate(() => document.documentElement.scrollWidth), 390, "nothing makes a phone scroll sideways");
  await phone.evaluate(() => scrollTo(0, 0));
  await shot(phone, "phone");
  told("a phone does not scroll sideways");

  const print = await opened({ colorScheme: "dark" });
  await loadAll(print);
  await print.pdf({ path: join(artifacts, "print.pdf"), format: "A4" });
  await print.emulateMedia({ media: "print" });
  assert.equal(await print.evaluate(() => getComputedStyle(document.body).backgroundColor), "rgb(255, 255, 255)");
  assert.equal(await print.locator("nav").isVisible(), false);
  await shot(print, "print");
  told("it prints, dark on white", { bytes: statSync(join(artifacts, "print.pdf")).size });

  const bare = await opened({ javaScriptEnabled: false });
  assert.ok(await bare.locator("[data-case='0'] img").isVisible(), "slices are seen without scripts");
  assert.equal(await bare.locator(".bar").isVisible(), false);
  await shot(bare, "no_script");
  told("slices are seen without scripts");

  assert.deepEqual(troubles, [], "no console message");
  const strange = requests.filter((url) => url !== address && !url.startsWith("data:"));
  assert.deepEqual(strange, [], "nothing is fetched");
  told("no console message, nothing fetched", { opened: requests.filter((url) => url === address).length });
} catch (error) {
  console.error(error.message);
  process.exitCode = 1;
} finally {
  await browser.close();
}
