// The report: the answer on the first screen, and tables that sort.
import { check } from './browser.mjs'

await check(async ({ page, say, height, shoot }) => {
  const first = await page.evaluate(() => document.querySelector('.headline').getBoundingClientRect().bottom)
  if (first > height) say('the answer is not on the first screen')
  await shoot('')
  const sorted = await page.evaluate(() => {
    const table = document.querySelector('table.sortable'),
      column = 0
    const texts = () => [...table.tBodies[0].rows].map((r) => r.cells[column].innerText)
    const button = table.querySelector('th button'),
      want = texts().sort((a, b) => a.localeCompare(b))
    button.click()
    const up = texts(),
      aria = table.querySelector('th').getAttribute('aria-sort')
    button.click()
    return [String(up) === String(want), aria === 'ascending', String(texts()) === String(want.reverse())]
  })
  if (sorted.includes(false)) say(`a table does not sort: ${sorted}`)
})
