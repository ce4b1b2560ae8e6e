-- Events that the recorder commands. Returns, for the state of the recording, a table of functions act.NAME(player, ...): each
-- returns whether the event could be acted. What is acted ahead needs a clear view; the recorder turns the player and tries again.
local EYE = 1.47
local BEARINGS = {0, 12, -12, 24, -24}

local function every_step(seconds, act) -- act(share) at each step of the server, share from 0 to 1
	local passed = 0
	local function step(dtime)
		passed = passed + dtime
		act(math.min(1, passed / seconds))
		return passed < seconds
	end
	return step
end

return function(gamecraft)
	local act, steps = {}, {}

	minetest.register_globalstep(function(dtime)
		for i = #steps, 1, -1 do
			if not steps[i](dtime) then table.remove(steps, i) end
		end
	end)

	-- A free spot on the ground at a distance ahead that the player sees, or nil.
	local function spot_ahead(player, distance, tall)
		local eye = vector.add(player:get_pos(), {x = 0, y = EYE, z = 0})
		for _, bearing in ipairs(BEARINGS) do
			local yaw = player:get_look_horizontal() + math.rad(bearing)
			local spot = vector.round({x = eye.x - distance * math.sin(yaw), y = gamecraft.ground + 1, z = eye.z + distance * math.cos(yaw)})
			local free = true
			for k = 0, tall - 1 do
				local at = {x = spot.x, y = spot.y + k, z = spot.z}
				local def = minetest.registered_nodes[minetest.get_node(at).name]
				free = free and def and not def.walkable and minetest.line_of_sight(eye, at)
			end
			local below = minetest.registered_nodes[minetest.get_node({x = spot.x, y = spot.y - 1, z = spot.z}).name]
			if free and below and below.walkable then return spot end
		end
	end

	local function whiten(middle)
		local radius = 48
		local from = {x = middle.x - radius, y = gamecraft.ground - 6, z = middle.z - radius}
		local to = {x = middle.x + radius, y = gamecraft.ground + 26, z = middle.z + radius}
		local manipulator = minetest.get_voxel_manip()
		local low, high = manipulator:read_from_map(from, to)
		local area, data = VoxelArea:new({MinEdge = low, MaxEdge = high}), manipulator:get_data()
		local snowy = {}
		for name, white in pairs({["default:dirt_with_grass"] = "default:dirt_with_snow", ["default:sand"] = "default:snowblock"}) do
			snowy[minetest.get_content_id(name)] = minetest.get_content_id(white)
		end
		for z = from.z, to.z do for y = from.y, to.y do for x = from.x, to.x do
			local index = area:index(x, y, z)
			local white = snowy[data[index]]
			if white then data[index] = white end
		end end end
		manipulator:set_data(data)
		manipulator:write_to_map(false)
	end

	function act.snow(player)
		minetest.add_particlespawner({amount = 600, time = 0.05, attached = player, minpos = {x = -9, y = 0, z = -9},
			maxpos = {x = 9, y = 5, z = 9}, minvel = {x = -0.5, y = -3, z = -0.5}, maxvel = {x = 0.5, y = -2, z = 0.5},
			minexptime = 1, maxexptime = 2, minsize = 1.2, maxsize = 2.2, texture = "default_snow.png", glow = 8})
		player:set_sky({type = "regular", clouds = false, sky_color = {day_sky = "#9aa3ab", day_horizon = "#c3c9ce"}})
		player:set_sun({visible = false, sunrise_visible = false})
		minetest.add_particlespawner({amount = 1500, time = 0, attached = player, minpos = {x = -9, y = 3, z = -9},
			maxpos = {x = 9, y = 7, z = 9}, minvel = {x = -0.5, y = -3.5, z = -0.5}, maxvel = {x = 0.5, y = -2.5, z = 0.5},
			minexptime = 2, maxexptime = 3, minsize = 1.2, maxsize = 2.2, texture = "default_snow.png", glow = 8})
		whiten(vector.round(player:get_pos())) -- at once: a few flakes alone are a change that is hardly seen
		return true
	end

	function act.night(player) -- the ground is brighter than at the game's own night, where nearly nothing can be seen
		steps[#steps + 1] = every_step(1.2, function(share)
			minetest.set_timeofday(0.765 + 0.045 * share)
			player:override_day_night_ratio(0.92 - 0.44 * share)
		end)
		return true
	end

	function act.torch(player) -- the player holds it from the start, but no hand is drawn before
		player:hud_set_flags({wielditem = true})
		return true
	end

	function act.block(player)
		local spot = spot_ahead(player, 3, 1)
		if not spot then return false end
		minetest.set_node(spot, {name = "default:mese"})
		return true
	end

	function act.creature(player)
		local spot = spot_ahead(player, 5, 3)
		if not spot then return false end
		minetest.add_entity({x = spot.x, y = spot.y - 0.5, z = spot.z}, "gamecraft_server:creature")
		return true
	end

	function act.explosion(player)
		local spot = spot_ahead(player, 7, 2)
		if not spot then return false end
		local middle = vector.add(spot, {x = 0, y = 0.8, z = 0})
		minetest.add_particle({pos = middle, expirationtime = 0.45, size = 55, texture = "tnt_boom.png", glow = 14})
		local function spread(amount, time, speed, size, life, texture, glow, lift)
			minetest.add_particlespawner({amount = amount, time = time, minpos = vector.subtract(middle, 0.6),
				maxpos = vector.add(middle, 0.6), minvel = {x = -speed, y = 0, z = -speed}, maxvel = {x = speed, y = speed, z = speed},
				minacc = {x = 0, y = lift, z = 0}, maxacc = {x = 0, y = lift, z = 0}, minexptime = life * 0.5, maxexptime = life,
				minsize = size * 0.6, maxsize = size, texture = texture, glow = glow})
		end
		spread(60, 0.15, 6, 12, 0.9, "fire_basic_flame.png", 14, -2)
		spread(70, 0.5, 2.5, 16, 3.5, "tnt_smoke.png", 0, 0.6)
		for dx = -3, 3 do for dz = -3, 3 do
			local distance = math.sqrt(dx * dx + dz * dz)
			local at = {x = spot.x + dx, y = gamecraft.ground, z = spot.z + dz}
			if distance <= 2.6 and minetest.get_node(at).name == "default:dirt_with_grass" then
				minetest.set_node(at, {name = distance < 1.7 and "default:coalblock" or "default:gravel"})
				local above = {x = at.x, y = at.y + 1, z = at.z}
				if minetest.get_item_group(minetest.get_node(above).name, "flora") > 0 then minetest.remove_node(above) end
			end
		end end
		return true
	end

	minetest.register_craftitem("gamecraft_server:torch", {inventory_image = "default_torch_on_floor.png",
		wield_scale = {x = 3.2, y = 3.2, z = 2}, light_source = 12})

	-- A creature of boxes that walks to and fro near where it appeared, across the player's view.
	minetest.register_entity("gamecraft_server:creature", {
		initial_properties = {physical = true, collide_with_objects = false, visual = "mesh", mesh = "gamecraft_creature.obj",
			textures = {"blank.png^[noalpha^[colorize:#e0408a:255", "blank.png^[noalpha^[colorize:#7a1f5c:255",
				"blank.png^[noalpha^[colorize:#101018:255"}, visual_size = {x = 1.8, y = 1.8, z = 1.8}, stepheight = 1.1, shaded = true,
			collisionbox = {-0.6, 0, -0.6, 0.6, 2.3, 0.6}},
		on_activate = function(self)
			self.object:set_acceleration({x = 0, y = -9.8, z = 0})
			self.home, self.passed, self.side = self.object:get_pos(), 0, gamecraft.random:next(0, 1) * 2 - 1
		end,
		on_step = function(self, dtime)
			local player = minetest.get_player_by_name(gamecraft.player_name)
			if not player then return end
			self.passed = self.passed + dtime
			if self.passed > 1.8 then self.passed, self.side = 0, -self.side end
			local towards = vector.direction(self.object:get_pos(), player:get_pos())
			local velocity = {x = -towards.z * self.side * 1.3, y = self.object:get_velocity().y, z = towards.x * self.side * 1.3}
			self.object:set_velocity(velocity)
			self.object:set_yaw(math.atan2(velocity.z, velocity.x) - math.pi / 2)
		end,
	})

	return act
end
