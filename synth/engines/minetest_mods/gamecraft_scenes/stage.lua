-- Stages for single interactions, and what the server does in them. Returns, for the tools of init.lua, functions by name:
-- stage_NAME builds a stage and sets the player before it, act_NAME makes an interaction happen, undo_NAME undoes it.
-- What is acted by keys (a block, a door, a torch) has no act_NAME. Each stage is level, and nothing stands between the player and
-- what is acted.
local HALF, DEPTH, HEIGHT, EYE = 14, 4, 14, 1.47
local FLOORS = {"default:dirt_with_grass", "default:dirt_with_grass", "default:sand", "default:stone", "default:dirt_with_dry_grass",
	"default:desert_sand", "default:silver_sand"}
local WALLS = {"default:stonebrick", "default:brick", "default:wood", "default:sandstonebrick", "default:desert_stonebrick",
	"default:aspen_wood", "wool:white", "default:cobble"}
local BLOCKS = {"default:cobble", "default:brick", "default:wood", "default:mese", "default:sandstone", "wool:red", "wool:yellow",
	"wool:blue", "default:steelblock", "default:clay", "default:mossycobble"}
local DAY, DUSK = {0.32, 0.42, 0.5, 0.62, 0.7}, {0.2, 0.206, 0.794, 0.8} -- 0 midnight, 0.5 noon
local DOORS = {"doors:door_wood", "doors:door_steel", "doors:door_glass", "doors:door_obsidian_glass"}
local THINGS = {"default:tree", "default:cobble", "default:mossycobble", "default:leaves", "default:stone", "default:clay",
	"default:pine_tree", "default:bookshelf", "default:gravel"}

-- A thin line on a square, since particles are square.
local STREAK = "[combine:16x16:7,0=blank.png\\^[noalpha\\^[colorize\\:#8098c0\\:255\\^[resize\\:1x16"

-- Light that a held torch gives: a block that is not drawn.
minetest.register_node("gamecraft_scenes:light", {drawtype = "airlike", paramtype = "light", sunlight_propagates = true,
	walkable = false, pointable = false, diggable = false, buildable_to = true, light_source = 12, groups = {not_in_creative_inventory = 1}})

-- A creature of boxes that walks to and fro near where it appeared.
minetest.register_entity("gamecraft_scenes:creature", {
	initial_properties = {physical = true, collide_with_objects = false, visual = "mesh", mesh = "gamecraft_creature.obj",
		textures = {"blank.png^[noalpha^[colorize:#e0408a:255", "blank.png^[noalpha^[colorize:#7a1f5c:255",
			"blank.png^[noalpha^[colorize:#101018:255"}, visual_size = {x = 1.8, y = 1.8, z = 1.8}, stepheight = 1.1, shaded = true,
		collisionbox = {-0.6, 0, -0.6, 0.6, 2.3, 0.6}},
	on_activate = function(self)
		self.object:set_acceleration({x = 0, y = -9.8, z = 0})
		self.passed, self.side = 0, math.random(0, 1) * 2 - 1
	end,
	on_step = function(self, dtime)
		local player = minetest.get_player_by_name("singleplayer")
		if not player then return end
		self.passed = self.passed + dtime
		if self.passed > 1.8 then self.passed, self.side = 0, -self.side end
		local towards = vector.direction(self.object:get_pos(), player:get_pos())
		local velocity = {x = -towards.z * self.side * 1.3, y = self.object:get_velocity().y, z = towards.x * self.side * 1.3}
		self.object:set_velocity(velocity)
		self.object:set_yaw(math.atan2(velocity.z, velocity.x) - math.pi / 2)
	end,
})

return function(tools)
	local random, pick, box, tell, set_weather = tools.random, tools.pick, tools.box, tools.tell, tools.set_weather
	local act, stage, origin, shown, lit = {}, nil, nil, nil, nil

	-- The block so many metres ahead, to the right and above the floor.
	local function at(ahead, right, up)
		local f = stage.facing
		return {x = stage.x + f.x * ahead + f.z * right, y = stage.y + 1 + up, z = stage.z + f.z * ahead - f.x * right}
	end
	local function ahead_box(a, b, name)
		local p, q = at(unpack(a)), at(unpack(b))
		box({x = math.min(p.x, q.x), y = math.min(p.y, q.y), z = math.min(p.z, q.z)},
			{x = math.max(p.x, q.x), y = math.max(p.y, q.y), z = math.max(p.z, q.z)}, name)
	end

	-- A level floor with things at both sides and behind, and a free way of `free` metres ahead.
	local function build(free)
		box({x = stage.x - HALF, y = stage.y + 1, z = stage.z - HALF}, {x = stage.x + HALF, y = stage.y + HEIGHT, z = stage.z + HALF}, "air")
		box({x = stage.x - HALF, y = stage.y - DEPTH, z = stage.z - HALF}, {x = stage.x + HALF, y = stage.y, z = stage.z + HALF}, pick(FLOORS))
		for _ = 1, 16 do
			local a, r, k = random:next(-11, 13), random:next(-12, 12), random:next(0, 3)
			if a > free or math.abs(r) > 2 + math.max(0, a) * 0.5 or a < -3 then
				ahead_box({a, r, 0}, {a, r, k}, pick(THINGS))
			end
		end
	end

	-- Sets the player at the stage's middle, looking `down` degrees down and at most `spread` degrees aside.
	local function seat(player, items, down, spread)
		local inventory = player:get_inventory()
		inventory:set_list("main", {})
		for slot, item in pairs(items) do inventory:set_stack("main", slot, item) end
		player:set_pos({x = stage.x, y = stage.y + 0.5, z = stage.z})
		local aside = spread > 0 and random:next(-10 * spread, 10 * spread) / 10 or 0
		player:set_look_horizontal(math.atan2(-stage.facing.x, stage.facing.z) + math.rad(aside))
		player:set_look_vertical(math.rad(down))
	end

	local function wall(distance)
		local name = pick(WALLS)
		ahead_box({distance, -5, 0}, {distance, 5, 3}, name)
		return name
	end

	-- Without clouds, so that nothing moves but what is acted.
	local function set_sky(player, sky, particles) set_weather(player, sky, {0, "#fff0f0e5"}, particles) end
	local function clear(player) set_sky(player, {"#61b5f5", "#90d3f6"}) end
	local function leaves() if shown then shown:remove(); shown = nil end end

	-- Leaves nothing of the take before.
	local function reset(player)
		leaves()
		clear(player)
		player:override_day_night_ratio(nil)
		lit = nil
	end

	local function stages(name, free, make, times)
		act["stage_" .. name] = function(player)
			reset(player)
			origin = origin or vector.round(player:get_pos())
			local facing = pick({{x = 1, z = 0}, {x = -1, z = 0}, {x = 0, z = 1}, {x = 0, z = -1}})
			stage = {x = origin.x, y = tools.ground(), z = origin.z, facing = facing}
			minetest.set_timeofday(pick(times or DAY))
			build(free)
			make(player)
		end
	end

	local function open_view(player) seat(player, {}, 2 + random:next(0, 60) / 10, 12) end

	for _, name in ipairs({"snow", "rain", "darkness"}) do stages(name, 7, open_view) end
	for _, name in ipairs({"creature", "human"}) do stages(name, 11, open_view) end
	stages("explosion", 9, function(player)
		stage.charge = at(6 + random:next(0, 2), 0, 0)
		minetest.set_node(stage.charge, {name = "tnt:tnt"})
		seat(player, {}, 6, 6)
	end)
	stages("take_out_torch", 7, function(player)
		stage.torch_lights = true
		seat(player, {[2] = "default:torch 9"}, 4 + random:next(0, 60) / 10, 12)
	end, DUSK)
	stages("take_out_block", 7, function(player)
		seat(player, {[2] = pick(BLOCKS) .. " 9"}, 4 + random:next(0, 60) / 10, 12)
	end)
	stages("place_block", 7, function(player)
		local distance = 2 + random:next(2, 9) / 10
		seat(player, {pick(BLOCKS) .. " 99"}, math.deg(math.atan(EYE / distance)), 6)
	end)
	stages("dig_block", 7, function(player)
		local kind = pick({{"default:cobble", "default:pick_diamond"}, {"default:sandstone", "default:pick_diamond"},
			{"default:dirt_with_grass", "default:shovel_diamond"}, {"default:sand", "default:shovel_diamond"},
			{"default:tree", "default:axe_diamond"}, {"default:brick", "default:pick_diamond"}})
		stage.block, stage.block_name = at(2 + random:next(0, 1), 0, 0), kind[1]
		minetest.set_node(stage.block, {name = kind[1]})
		local away = vector.distance(stage.block, {x = stage.x, y = stage.y + 1, z = stage.z})
		seat(player, {kind[2]}, math.deg(math.atan((EYE - 0.6) / away)), 3)
	end)
	stages("place_torch", 7, function(player)
		wall(3)
		seat(player, {"default:torch 9"}, random:next(-40, 120) / 10, 8)
	end, DUSK)
	stages("open_door", 7, function(player)
		wall(3)
		local along = {at(3, 0, 0), at(3, 0, 1)}
		local facing = stage.facing.x ~= 0 and 1 or 0
		minetest.set_node(along[1], {name = pick(DOORS) .. "_a", param2 = facing})
		minetest.set_node(along[2], {name = "doors:hidden", param2 = facing})
		minetest.get_meta(along[1]):set_int("state", 0)
		seat(player, {}, random:next(40, 140) / 10, 3)
	end)

	-- Weather that is at once all over the view: what begins to fall above is seen a second later.
	local function weather(player, sky, particles)
		set_sky(player, sky, particles)
		minetest.add_particlespawner({amount = particles.amount * 0.4, time = 0.05, attached = player, minpos = {x = -9, y = 0, z = -9},
			maxpos = {x = 9, y = 6, z = 9}, minvel = {x = -0.4, y = -particles.speed, z = -0.4},
			maxvel = {x = 0.4, y = -particles.speed * 0.8, z = 0.4}, minexptime = 0.5, maxexptime = 2, minsize = particles.size * 0.5,
			maxsize = particles.size, collisiondetection = true, collision_removal = true, texture = particles.texture,
			vertical = particles.vertical})
		tell("weather")
	end
	function act.act_snow(player)
		weather(player, {"#8a9096", "#a8adb2"},
			{amount = 2600 + random:next(0, 1400), speed = 3.5, size = 1.3, texture = "default_snow.png", vertical = false})
	end
	function act.act_rain(player)
		weather(player, {"#5a6068", "#70767c"}, {amount = 3000 + random:next(0, 2000), speed = 12, size = 3.2,
			texture = STREAK, vertical = true})
	end
	local function end_weather(player) clear(player); tell("weather") end
	act.undo_snow, act.undo_rain = end_weather, end_weather

	function act.act_darkness(player) player:override_day_night_ratio(0.35); tell("weather") end
	function act.undo_darkness(player) player:override_day_night_ratio(nil) end

	local function appears(entity, height, distance)
		return function()
			local pos = at(distance + random:next(0, 25) / 10, random:next(-12, 12) / 10, -0.5)
			shown = minetest.add_entity(pos, entity)
			tell("appear", vector.add(pos, {x = 0, y = height / 2, z = 0}), height / 2)
		end
	end
	act.act_creature, act.act_human = appears("gamecraft_scenes:creature", 2.3, 6),
		appears("gamecraft_scenes:walker", 1.8, 3)
	act.undo_creature, act.undo_human = leaves, leaves

	function act.act_explosion(player)
		local pos = stage.charge or at(6 + random:next(0, 2), 0, 0)
		stage.charge = nil
		if not minetest.global_exists("tnt") then return end
		tnt.boom(pos, {radius = pick({1, 2, 2}), damage_radius = 0})
		tell("explosion", pos, 3)
	end

	-- What keys have done is undone in the map: what is in front of the player above the floor, or the block that was dug.
	local function take_away(walkable)
		for a = 1, 3 do for r = -2, 2 do for u = 0, 3 do
			local pos = at(a, r, u)
			local def = minetest.registered_nodes[minetest.get_node(pos).name]
			if def and def.name ~= "air" and def.walkable == walkable then minetest.remove_node(pos) end
		end end end
	end
	function act.undo_place_block() take_away(true) end
	function act.undo_place_torch() take_away(false) end
	function act.undo_dig_block() minetest.set_node(stage.block, {name = stage.block_name}) end

	-- The camera jumps: the player stands at another side of the stage and looks elsewhere.
	function act.jump(player)
		player:set_pos({x = stage.x + random:next(-9, 9), y = stage.y + 1.5, z = stage.z + random:next(-9, 9)})
		player:set_look_horizontal(player:get_look_horizontal() + math.rad(random:next(100, 260)))
		player:set_look_vertical(math.rad(random:next(-5, 12)))
	end

	minetest.register_globalstep(function()
		local player = stage and stage.torch_lights and minetest.get_player_by_name("singleplayer")
		if not player then return end
		local held = player:get_wielded_item():get_name() == "default:torch"
		if held and not lit then
			lit = vector.round(vector.add(player:get_pos(), {x = 0, y = 1.5, z = 0}))
			minetest.set_node(lit, {name = "gamecraft_scenes:light"})
		elseif lit and not held then
			minetest.remove_node(lit)
			lit = nil
		end
	end)

	return act
end
