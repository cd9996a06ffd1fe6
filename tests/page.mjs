// Opens a page in Chromium at a desktop's and a phone's width, in light and dark, and prints as JSON what is wrong with it.
// node page.mjs PAGE CHROMIUM MODULES [SCREENSHOTS]: MODULES is a node_modules with puppeteer-core and axe-core
import { createRequire } from 'node:module'
import { pathToFileURL } from 'node:url'
import fs from 'node:fs'

const [file, executablePath, modules, shots] = process.argv.slice(2)
const require = createRequire(modules + '/')
const { default: puppeteer } = await import(pathToFileURL(require.resolve('puppeteer-core')))
const axe = fs.readFileSync(require.resolve('axe-core/axe.min.js'), 'utf8')
const wrong = []
const browser = await puppeteer.launch({ executablePath, args: ['--no-sandbox', '--disable-gpu'] })
for (const [width, height] of [[1440, 900], [390, 844]]) for (const scheme of ['light', 'dark']) {
  const say = text => wrong.push(`${width} ${scheme}: ${text}`)
  const page = await browser.newPage()
  page.on('console', m => say(`console ${m.type()}: ${m.text()}`))
  page.on('pageerror', e => say(`error: ${e.message}`))
  page.on('request', r => { if (!/^(file|data):/.test(r.url())) say(`fetches ${r.url()}`) })
  await page.setViewport({ width, height })
  await page.emulateMediaFeatures([{ name: 'prefers-color-scheme', value: scheme }])
  await page.goto(pathToFileURL(file).href)
  const seen = await page.evaluate(() => document.documentElement.scrollWidth)
  if (seen > width) say(`is ${seen} pixels wide`)
  const first = await page.evaluate(() => document.querySelector('.headline').getBoundingClientRect().bottom)
  if (first > height) say('the answer is not on the first screen')
  if (shots) await page.screenshot({ path: `${shots}-${width}-${scheme}.png`, fullPage: true })
  const sorted = await page.evaluate(() => {
    const table = document.querySelector('table.sortable'), column = 0
    const texts = () => [...table.tBodies[0].rows].map(r => r.cells[column].innerText)
    const button = table.querySelector('th button'), want = texts().sort((a, b) => a.localeCompare(b))
    button.click(); const up = texts(), aria = table.querySelector('th').getAttribute('aria-sort')
    button.click(); return [String(up) === String(want), aria === 'ascending', String(texts()) === String(want.reverse())]
  })
  if (sorted.includes(false)) say(`a table does not sort: ${sorted}`)
  await page.evaluate(axe)
  const { violations } = await page.evaluate(() => axe.run())
  for (const v of violations) if (['serious', 'critical'].includes(v.impact)) say(`axe ${v.id}: ${v.nodes[0].html.slice(0, 120)}`)
  await page.close()
}
await browser.close()
console.log(JSON.stringify(wrong))
