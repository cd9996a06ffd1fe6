// The documentation: the search finds a name, offline, and the pages are readable at every width.
import { check } from './browser.mjs'

await check(async ({ page, say, shoot }) => {
  await shoot('')
  const home = page.url()
  await page.goto(home.replace(/[^/]+\/[^/]+$/, 'search.html?q=simam'))
  await page.waitForSelector('ul.search a[href*="modules.html"]', { timeout: 20000 }).catch(() => say('the search does not find SimAM'))
  await page.goto(home)
}, /\.css|ERR_FAILED|preload assets|^axe (minor|moderate)/)  // axe cannot read the styles of a file; landmarks are the theme's
