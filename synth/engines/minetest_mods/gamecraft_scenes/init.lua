-- Prepares a scene in a natural landscape, sets the player there, and acts what the recorder commands. Lines of the log are
-- "GAMECRAFT_SERVER {json}". What it acts it also says on the mod channel, so that the client logs it in the frame of its arrival.
-- Settings: gamecraft_scene = wild, yard or house; gamecraft_at = x,z; gamecraft_hud, gamecraft_hand; gamecraft_time_of_day;
-- gamecraft_seed.
local settings = minetest.settings
local scene = settings:get("gamecraft_scene") or "wild"
local has_hud, has_hand = settings:get_bool("gamecraft_hud", true), settings:get_bool("gamecraft_hand", true)
local random = PcgRandom(tonumber(settings:get("gamecraft_seed") or "0"))
local PLAYER, REACH, TRIES, STRIDE = "singleplayer", 40, 12, 160
local channel = minetest.mod_channel_join("gamecraft")

local function round(x) return math.floor(x * 1000 + 0.5) / 1000 end
local function rounded(p) return {round(p.x), round(p.y), round(p.z)} end
local function log(line) minetest.log("action", "GAMECRAFT_SERVER " .. minetest.write_json(line)) end
local function tell(name, pos, radius, open)
	channel:send_all(minetest.write_json({name = name, pos = pos and rounded(pos) or nil, radius = radius, open = open}))
end
-- Tell of weather, and whether the player is under the open sky: under a roof it is hardly seen.
local function tell_weather(player)
	local light = minetest.get_natural_light(vector.add(player:get_pos(), {x = 0, y = 1.6, z = 0}), 0.5)
	tell("weather", nil, nil, (light or 0) >= 14)
end
local function pick(list) return list[random:next(1, #list)] end

local function box(a, b, name)
	local list = {}
	for x = a.x, b.x do for y = a.y, b.y do for z = a.z, b.z do list[#list + 1] = {x = x, y = y, z = z} end end end
	minetest.bulk_set_node(list, {name = name})
end

-- Four rooms in a ring, joined by doors. Returns the doors.
local function build_house(o)
	local walls = {"default:stonebrick", "default:brick", "default:wood", "default:sandstonebrick", "default:desert_stonebrick",
		"default:silver_sandstone_brick", "default:aspen_wood", "wool:white", "wool:cyan"}
	local floors = {"default:junglewood", "default:pine_wood", "default:stone_block", "default:acacia_wood", "default:obsidian_block"}
	local S, H, doors = 8, 4, {}
	box(vector.add(o, {x = -3, y = 0, z = -3}), vector.add(o, {x = 2 * S + 3, y = H + 6, z = 2 * S + 3}), "air")
	for i = 0, 3 do
		local a = {x = o.x + (i % 2) * S, y = o.y, z = o.z + math.floor(i / 2) * S}
		local b = {x = a.x + S, y = a.y + H, z = a.z + S}
		local wall = pick(walls)
		box({x = a.x, y = a.y - 1, z = a.z}, {x = b.x, y = a.y - 1, z = b.z}, pick(floors))
		box({x = a.x, y = b.y, z = a.z}, b, "default:wood")
		for y = a.y, b.y do for k = 0, S do
			for _, q in ipairs({{a.x + k, a.z}, {a.x + k, b.z}, {a.x, a.z + k}, {b.x, a.z + k}}) do
				minetest.set_node({x = q[1], y = y, z = q[2]}, {name = wall})
			end
		end end
		minetest.set_node({x = a.x + 2, y = a.y, z = a.z + 2}, {name = "default:bookshelf"})
		minetest.set_node({x = a.x + 2, y = a.y, z = a.z + 6}, {name = "default:chest"})
		minetest.set_node({x = a.x + 6, y = a.y, z = a.z + 6}, {name = "default:meselamp"})
		minetest.set_node({x = a.x + 6, y = a.y, z = a.z + 2}, {name = "default:meselamp"})
	end
	local half = S / 2
	local places = {{o.x + S, o.z + half, 1}, {o.x + S + half, o.z + S, 0}, {o.x + S, o.z + S + half, 1}, {o.x + half, o.z + S, 0}}
	local kinds = {"doors:door_wood", "doors:door_steel", "doors:door_glass", "doors:door_obsidian_glass"}
	for i, q in ipairs(places) do
		local pos = {x = q[1], y = o.y, z = q[2]}
		minetest.set_node(pos, {name = pick(kinds) .. "_a", param2 = q[3]})
		minetest.set_node({x = q[1], y = o.y + 1, z = q[2]}, {name = "doors:hidden", param2 = q[3]})
		minetest.get_meta(pos):set_int("state", 0)
		doors[i] = rounded(pos)
	end
	return doors
end

local function build_yard(at, y)
	local floor = pick({"default:dirt_with_grass", "default:dirt_with_grass", "default:sand", "default:stone", "default:snowblock",
		"default:dirt_with_dry_grass", "default:desert_sand"})
	box({x = at.x - 12, y = y + 1, z = at.z - 12}, {x = at.x + 12, y = y + 10, z = at.z + 12}, "air")
	box({x = at.x - 12, y = y - 2, z = at.z - 12}, {x = at.x + 12, y = y, z = at.z + 12}, floor)
	for _ = 1, 10 do
		local x, z, k = at.x + random:next(-11, 11), at.z + random:next(-11, 11), random:next(1, 3)
		if math.abs(x - at.x) + math.abs(z - at.z) > 3 then
			box({x = x, y = y + 1, z = z}, {x = x, y = y + k, z = z}, pick({"default:tree", "default:cobble", "default:mossycobble",
				"default:leaves", "default:stone", "default:clay", "default:coalblock"}))
		end
	end
end

minetest.register_entity("gamecraft_scenes:walker", {
	initial_properties = {physical = true, collide_with_objects = false, visual = "mesh", mesh = "character.b3d",
		textures = {"character.png^[colorize:#204080:110"}, collisionbox = {-0.3, 0, -0.3, 0.3, 1.7, 0.3}, stepheight = 1.1,
		visual_size = {x = 1, y = 1}},
	on_activate = function(self)
		local colour = pick({"#204080", "#802020", "#208040", "#806020", "#602080", "#202020"})
		self.object:set_properties({textures = {"character.png^[colorize:" .. colour .. ":120"},
			visual_size = pick({{x = 1, y = 1}, {x = 1.4, y = 1.2}, {x = 0.8, y = 0.7}})})
		self.object:set_acceleration({x = 0, y = -9.8, z = 0})
		self.object:set_animation({x = 168, y = 187}, 30, 0)
		self.passed, self.near = 0, 2 + random:next(0, 30) / 10
	end,
	on_step = function(self, dtime)
		self.passed = self.passed + dtime
		local player = minetest.get_player_by_name(PLAYER)
		if not player then return end
		local d = vector.subtract(player:get_pos(), self.object:get_pos())
		local flat, v = math.max(math.sqrt(d.x * d.x + d.z * d.z), 0.1), self.object:get_velocity()
		local speed = flat > self.near and 1.6 or 0
		self.object:set_velocity({x = d.x / flat * speed, y = v.y, z = d.z / flat * speed})
		self.object:set_yaw(math.atan2(d.z, d.x) - math.pi / 2)
		if self.passed > 10 then self.object:remove() end
	end,
})

local spawner
local function set_weather(player, sky, cloud, particles)
	if spawner then minetest.delete_particlespawner(spawner); spawner = nil end
	player:set_sky({type = "regular", clouds = true, sky_color = {day_sky = sky[1], day_horizon = sky[2]}})
	player:set_clouds({density = cloud[1], color = cloud[2]})
	if particles then
		spawner = minetest.add_particlespawner({amount = particles.amount, time = 0, attached = player,
			minpos = {x = -11, y = 4, z = -11}, maxpos = {x = 11, y = 8, z = 11}, minvel = {x = -0.4, y = -particles.speed, z = -0.4},
			maxvel = {x = 0.4, y = -particles.speed * 0.8, z = 0.4}, minexptime = 1, maxexptime = 3, minsize = particles.size * 0.5,
			maxsize = particles.size, collisiondetection = true, collision_removal = true, texture = particles.texture,
			vertical = particles.vertical})
	end
end

-- A spot on the ground ahead of the player.
local function ahead(player, distance)
	local pos, dir = player:get_pos(), player:get_look_dir()
	local flat = math.max(0.01, math.sqrt(dir.x * dir.x + dir.z * dir.z))
	local at = vector.round({x = pos.x + dir.x / flat * distance, y = pos.y + 6, z = pos.z + dir.z / flat * distance})
	for _ = 1, 14 do
		local def = minetest.registered_nodes[minetest.get_node(at).name]
		if def and def.walkable then break end
		at.y = at.y - 1
	end
	return vector.add(at, {x = 0, y = 1, z = 0})
end

local act = {}
function act.snow(player)
	set_weather(player, {"#8a9096", "#a8adb2"}, {0.9, "#9aa0a8f0"},
		{amount = 700 + random:next(0, 900), speed = 4, size = 1.6, texture = "default_snow.png", vertical = false})
	tell_weather(player)
end
function act.rain(player)
	set_weather(player, {"#5a6068", "#70767c"}, {0.95, "#50565ef0"}, {amount = 900 + random:next(0, 800), speed = 12, size = 2.4,
		texture = "blank.png^[noalpha^[colorize:#7890b8:255^[resize:2x16", vertical = true})
	tell_weather(player)
end
function act.clear(player)
	set_weather(player, {"#61b5f5", "#90d3f6"}, {0.4, "#fff0f0e5"})
	tell_weather(player)
end
function act.night(player) minetest.set_timeofday(0.8); tell_weather(player) end
function act.day(player) minetest.set_timeofday(0.45); tell_weather(player) end
function act.creature(player)
	local pos = ahead(player, 4 + random:next(0, 4))
	minetest.add_entity(pos, "gamecraft_scenes:walker")
	tell("appear", vector.add(pos, {x = 0, y = 0.9, z = 0}), 0.9)
end
function act.fuse(player) -- a charge is set; it explodes on the command "explosion"
	act.charge = ahead(player, 5 + random:next(0, 4))
	minetest.set_node(act.charge, {name = "tnt:tnt"})
	tell("place", act.charge, 0.5)
end
function act.explosion(player)
	local pos = act.charge or ahead(player, 5 + random:next(0, 4))
	act.charge = nil
	if not minetest.global_exists("tnt") then return end
	tnt.boom(pos, {radius = pick({1, 2, 2, 3}), damage_radius = 0})
	tell("explosion", pos, 3)
end

-- Stages for single interactions (`synth.engines.minetest_acts`).
local ground = 0
local tools = {random = random, pick = pick, box = box, tell = tell, set_weather = set_weather, ground = function() return ground end}
for name, make in pairs(dofile(minetest.get_modpath("gamecraft_scenes") .. "/stage.lua")(tools)) do act[name] = make end

-- The recorder's commands: words in WORLD/commands.txt, which is read and removed.
local path = minetest.get_worldpath() .. "/commands.txt"
local started
minetest.register_globalstep(function()
	local player = minetest.get_player_by_name(PLAYER)
	if not player or not started then return end
	local file = io.open(path)
	if file then
		local text = file:read("*a")
		file:close()
		os.remove(path)
		for word in text:gmatch("%S+") do if type(act[word]) == "function" then act[word](player) end end
	end
	local eye = vector.add(player:get_pos(), {x = 0, y = 1.47, z = 0})
	local hit = minetest.raycast(eye, vector.add(eye, vector.multiply(player:get_look_dir(), 4)), false, false):next()
	log({event = "pointed", pos = hit and rounded(hit.under) or nil, node = hit and minetest.get_node(hit.under).name or nil})
end)

local function give(player)
	local inventory, blocks = player:get_inventory(), {"default:cobble", "default:brick", "default:glass", "default:wood",
		"default:meselamp", "default:sandstone", "wool:red", "wool:yellow", "default:steelblock", "default:leaves", "default:stone"}
	inventory:set_size("main", 32)
	local list = {"default:pick_" .. pick({"steel", "mese", "diamond"}), "default:shovel_steel", "default:axe_steel",
		pick(blocks) .. " 99", pick(blocks) .. " 99", "default:torch 99", pick(blocks) .. " 99", pick({"default:apple 20",
		"default:sword_steel", "bucket:bucket_empty"})}
	for slot, item in ipairs(list) do inventory:set_stack("main", slot, item) end
end

local function is_dry(x, z)
	for y = 70, -20, -1 do
		local name = minetest.get_node({x = x, y = y, z = z}).name
		if name ~= "air" and name ~= "ignore" then
			local def = minetest.registered_nodes[name] or {}
			if def.walkable and not (def.groups or {}).leaves and not (def.groups or {}).tree then return y end
			if def.liquidtype and def.liquidtype ~= "none" then return nil end
		end
	end
end

local function prepare(player, x, z, tries)
	minetest.emerge_area({x = x - REACH, y = -20, z = z - REACH}, {x = x + REACH, y = 71, z = z + REACH}, function(_, _, left)
		if left > 0 then return end
		local y = is_dry(x, z)
		if not y and tries > 0 then prepare(player, x + STRIDE, z, tries - 1); return end
		y = y or 2
		ground = y
		local ready = {event = "ready", ground = y, x = x, z = z}
		local at = {x = x, y = y + 1, z = z}
		if scene == "house" then
			ready.doors, ready.origin = build_house({x = x, y = y + 1, z = z}), {x, y + 1, z}
			at = {x = x + 4, y = y + 1, z = z + 4}
		elseif scene == "yard" then
			build_yard({x = x, z = z}, y)
		end
		player:set_pos(at)
		player:set_look_horizontal(random:next(0, 628) / 100)
		ready.at = rounded(at)
		minetest.after(1.5, function() started = true; log(ready) end)
	end)
end

minetest.register_on_joinplayer(function(player)
	minetest.set_timeofday(tonumber(settings:get("gamecraft_time_of_day") or "0.45"))
	player:hud_set_flags({hotbar = has_hud, healthbar = has_hud, crosshair = has_hud, wielditem = has_hand, breathbar = has_hud,
		minimap = false})
	give(player)
	local x, z = (settings:get("gamecraft_at") or "0,0"):match("(-?%d+),(-?%d+)")
	prepare(player, tonumber(x), tonumber(z), TRIES)
end)
