// The report: the answer on the first screen, tables that sort, a legend that lights up, words that are explained.
import { check } from './browser.mjs'

await check(async ({ page, say, width, height, shoot }) => {
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
  const cards = await page.evaluate(() => {
    const cells = [...document.querySelectorAll('table.cards td')],
      told = (c) => getComputedStyle(c, '::before').content === JSON.stringify(c.dataset.label) && c.dataset.label
    const seen = cells.filter((c) => told(c) && c.getBoundingClientRect().right <= innerWidth)
    return [cells.length > 9, seen.length === (innerWidth < 480 ? cells.length : 0)]
  })
  if (cards.includes(false)) say(`short tables are ${width < 480 ? 'no' : ''} cards: ${cards}`)
  const lit = await page.evaluate(() => {
    const button = document.querySelector('#curves .legend button'),
      name = button.parentElement.classList[0]
    const lines = () => [...document.querySelectorAll('#curves svg [class^="of-"]')]
    const clear = () => new Set(lines().filter((l) => getComputedStyle(l).opacity > 0.5).map((l) => l.classList[0]))
    button.focus()
    const focused = clear()
    button.blur()
    return [focused.size === 1 && focused.has(name), clear().size > 1, lines().length > 3]
  })
  if (lit.includes(false)) say(`the legend does not light up: ${lit}`)
  const words = await page.evaluate(() => {
    const links = [...document.querySelectorAll('a.term')]
    return [links.length > 3, links.every((a) => document.getElementById(decodeURIComponent(a.hash).slice(1))?.tagName === 'DT')]
  })
  if (words.includes(false)) say(`words are not explained: ${words}`)
  const printed = await page.evaluate(() => {
    const open = () => [...document.querySelectorAll('details')].map((d) => d.open)
    const folded = open()
    dispatchEvent(new Event('beforeprint'))
    const whole = open()
    dispatchEvent(new Event('afterprint'))
    return [folded.includes(false), !whole.includes(false), String(open()) === String(folded)]
  })
  if (printed.includes(false)) say(`what is folded is not printed: ${printed}`)
})
